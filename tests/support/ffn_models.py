"""Tiny random models of every architecture whose FFN channels can be removed, in float64."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WIDTH = 160
SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 96}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HEADS = {"head_dim": 8}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma": HEADS,
    "gemma2": HEADS,
    "gemma3_text": HEADS | {"hidden_activation": "gelu_pytorch_tanh"},
    "llama": {"mlp_bias": True},
    "qwen2_moe": SHARED | {"decoder_sparse_step": 1},
    "qwen3_5_moe_text": SHARED | LINEAR | HEADS,
    "qwen3_5_text": LINEAR | HEADS,
    "qwen3_moe": EXPERTS | HEADS | {"mlp_only_layers": [1]},  # the second layer's FFN is dense
    "qwen3_next": SHARED | LINEAR | HEADS,
}


def tiny_ffn_model(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model whose FFNs matter, and whose biases and norms are not those that it would be initialised with."""
    config = AutoConfig.for_model(model_type, **{**SHAPE, **CHANGES.get(model_type, {}), **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "norm" not in name and "conv" not in name:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    return model.eval()
