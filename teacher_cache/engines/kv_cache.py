"""The size of vLLM's KV cache for prefill alone.

vLLM fills its share of the device's memory with KV cache, before the capture's hooks exist. A capture keeps no cache
from one step to the next, so what two steps need is enough (vLLM schedules one step while another runs); the rest of
the memory stays free for rows of logits. If a step's sequences do not fit, vLLM schedules fewer: slower, not wrong.
"""

import math
from typing import Any

import torch

from schemas.cache_config import CacheConfig

STEPS = 2
CPU_BYTES = 2 << 30  # on CPUs, for layouts whose size is not known here
BLOCK_TOKENS = 128  # the largest block of vLLM's attention kernels; the last one of a sequence is partly empty
MEAN_TOKENS = 512  # assumed length of a sequence
STATE_BYTES = 4  # per entry of a recurrent state: float32, whatever the model's dtype

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
LINEAR_LAYER = "linear_attention"
RECURRENT_KEYS = ("mamba", "ssm", "state_size", "time_step", "layers_block_type", "hybrid_override_pattern")


def kv_cache_memory(config: CacheConfig, text_config: Any, step_tokens: int, on_cpu: bool) -> int | None:
    """Bytes to give vLLM as ``kv_cache_memory_bytes``; None: vLLM takes its share of the GPU's memory.

    What the user set (``engine.cpu_kv_cache_gib``, ``engine.gpu_memory_utilization``) takes precedence.
    """
    engine = config.engine
    if on_cpu and engine.cpu_kv_cache_gib is not None:
        return engine.cpu_kv_cache_gib << 30
    if not on_cpu and engine.gpu_memory_utilization is not None:
        return None
    element_bytes = getattr(torch, config.teacher.dtype).itemsize
    computed = kv_cache_bytes(text_config, element_bytes, engine.tensor_parallel, step_tokens)
    return CPU_BYTES if computed is None and on_cpu else computed


def kv_cache_bytes(text_config: Any, element_bytes: int, ranks: int, step_tokens: int) -> int | None:
    """Bytes of KV cache per device for ``STEPS`` forward passes of ``step_tokens`` tokens.

    element_bytes: of the cache's dtype; ranks: of tensor parallelism. None for layouts that are not known here:
    recurrent layers other than gated delta nets.
    """
    layer_types = getattr(text_config, "layer_types", None) or ["attention"] * text_config.num_hidden_layers
    other_layers = set(layer_types) - ATTENTION_LAYERS - ({LINEAR_LAYER} if _has_delta_nets(text_config) else set())
    if other_layers or any(key.startswith(RECURRENT_KEYS) for key in vars(text_config) if key != "mamba_ssm_dtype"):
        return None
    layers = list(getattr(text_config, "per_layer_config", None) or [text_config] * len(layer_types))
    sizes = [
        _state_bytes(layer, element_bytes, ranks) if kind == LINEAR_LAYER else _token_bytes(layer, element_bytes, ranks)
        for layer, kind in zip(layers, layer_types, strict=True)
    ]
    per_token = sum(size for size, kind in zip(sizes, layer_types, strict=True) if kind != LINEAR_LAYER)
    states = [size for size, kind in zip(sizes, layer_types, strict=True) if kind == LINEAR_LAYER]
    per_sequence = max(states, default=0) * len(layer_types)  # vLLM gives all layers blocks of one size
    sequences = math.ceil(step_tokens / MEAN_TOKENS) + 1
    return STEPS * ((step_tokens + sequences * BLOCK_TOKENS) * per_token + sequences * per_sequence)


def _has_delta_nets(config: Any) -> bool:
    return hasattr(config, "linear_num_value_heads")


def _token_bytes(config: Any, element_bytes: int, ranks: int) -> int:
    """Bytes per token of one attention layer: keys and values, or MLA's latent vector, which every rank has whole."""
    latent = getattr(config, "kv_lora_rank", None)
    if latent:
        index_bytes = (getattr(config, "index_head_dim", None) or 0) + 4  # of the sparse indexer: float8, and a scale
        return (latent + config.qk_rope_head_dim) * element_bytes + index_bytes
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * max(1, math.ceil(_kv_heads(config) / ranks)) * head_size * element_bytes


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    heads = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None)
    return heads or config.num_attention_heads


def _state_bytes(config: Any, element_bytes: int, ranks: int) -> int:
    """Bytes per sequence of one gated delta net: its convolution's last inputs, and its recurrent state."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    convolution = (2 * keys + values) * (config.linear_conv_kernel_dim - 1) * element_bytes
    return math.ceil((convolution + values * config.linear_key_head_dim * STATE_BYTES) / ranks)
