"""The size of vLLM's KV cache: of published shapes, by hand, and what a user's settings do to it.

That vLLM, given so much, has room for two steps is tested in ``test_families``.
"""

from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from benchmarks.engines import config_of
from support.families import FAMILIES
from teacher_cache.engines.kv_cache import CPU_BYTES, kv_cache_bytes, kv_cache_memory

LLAMA_8B = hf.LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
QWEN_35B = hf.Qwen3_5MoeTextConfig(
    num_hidden_layers=40,
    num_key_value_heads=2,
    head_dim=256,
    layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 10,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
)
DELTA_NET = 3 * (2 * 16 * 128 + 32 * 128) * 2 + 32 * 128 * 128 * 4  # bytes of one sequence's state in one layer


@pytest.mark.parametrize(
    ("config", "ranks", "step_tokens", "wanted"),
    [
        (LLAMA_8B, 1, 8192, 2 * (8192 + 17 * 128) * 32 * 2 * 8 * 128 * 2),
        (LLAMA_8B, 4, 8192, 2 * (8192 + 17 * 128) * 32 * 2 * 2 * 128 * 2),
        (LLAMA_8B, 16, 100, 2 * (100 + 2 * 128) * 32 * 2 * 1 * 128 * 2),  # a head is not split
        (QWEN_35B, 1, 8192, 2 * ((8192 + 17 * 128) * 10 * 2 * 2 * 256 * 2 + 17 * 40 * DELTA_NET)),
        (QWEN_35B, 2, 8192, 2 * ((8192 + 17 * 128) * 10 * 2 * 1 * 256 * 2 + 17 * 40 * DELTA_NET // 2)),
        (hf.DeepseekV3Config(), 8, 512, 2 * (512 + 2 * 128) * 61 * ((512 + 64) * 2 + 4)),  # every rank has all of it
        (FAMILIES["Gemma-4 (multimodal)"]().get_text_config(), 1, 512, 2 * 768 * 2 * 2 * 2 * (2 * 32 + 1 * 64)),
        (hf.FalconConfig(), 1, 512, 2 * 768 * 32 * 2 * 1 * 64 * 2),  # multi-query attention
    ],
)
def test_two_steps_and_a_partial_block_per_sequence(config: Any, ranks: int, step_tokens: int, wanted: int) -> None:
    assert kv_cache_bytes(config, 2, ranks, step_tokens) == wanted


@pytest.mark.parametrize(
    "config", [FAMILIES["Falcon-H1"](), FAMILIES["DeepSeek-V4"](), hf.JambaConfig(), hf.MiniMaxConfig()]
)
def test_unknown_layouts_are_left_to_vllm(config: Any, tmp_path: Path) -> None:
    assert kv_cache_bytes(config, 2, 1, 8192) is None
    settings = config_of(tmp_path, "vllm", ["logits"])
    assert kv_cache_memory(settings, config, 8192, on_cpu=False) is None
    assert kv_cache_memory(settings, config, 8192, on_cpu=True) == CPU_BYTES


def test_settings_take_precedence_on_their_device(tmp_path: Path) -> None:
    computed = kv_cache_bytes(LLAMA_8B, 4, 1, 8192)
    by_default = config_of(tmp_path, "vllm", ["logits"])
    assert kv_cache_memory(by_default, LLAMA_8B, 8192, on_cpu=True) == computed
    assert kv_cache_memory(by_default, LLAMA_8B, 8192, on_cpu=False) == computed
    set_by_user = config_of(tmp_path, "vllm", ["logits"], cpu_kv_cache_gib=3, gpu_memory_utilization=0.5)
    assert kv_cache_memory(set_by_user, LLAMA_8B, 8192, on_cpu=True) == 3 << 30
    assert kv_cache_memory(set_by_user, LLAMA_8B, 8192, on_cpu=False) is None
