"""Tiny random models whose decoder layers differ where folding has to know: biases, q and k norms, 1 + w."""

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
FAMILIES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "Llama": lambda: hf.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "Qwen2": lambda: hf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "Qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=32),
    "Gemma-3": lambda: hf.Gemma3TextConfig(
        **SHAPE, head_dim=32, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
}


def random_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with norms, biases and channel magnitudes far from their initial values."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif "embed" not in name and "lm_head" not in name:
                parameter.mul_(torch.rand(parameter.shape[1]).mul(3).exp() * 2)
    return model.to(dtype)
