"""Tiny random models whose decoder layers differ where folding has to know.

Biases, q and k norms, norms of 1 + w, experts, shared experts, linear attention.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from support.models import VOCAB_SIZE

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
HYBRID: dict[str, Any] = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
FAMILIES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "Llama": lambda: hf.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "Qwen2": lambda: hf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "Qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=32),
    "Gemma-3": lambda: hf.Gemma3TextConfig(
        **SHAPE, head_dim=32, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=32),
    "Qwen3.5": lambda: hf.Qwen3_5TextConfig(**SHAPE, **HYBRID),
    "Qwen3.5-MoE": lambda: hf.Qwen3_5MoeTextConfig(**SHAPE, **HYBRID, **EXPERTS, shared_expert_intermediate_size=64),
}


def random_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with norms, biases and channel magnitudes far from their initial values."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[family](), experts_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "conv1d" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif "embed" not in name and "lm_head" not in name:
                parameter.mul_(torch.rand(parameter.shape[-1]).mul(3).exp() * 2)
    return model.to(dtype)
