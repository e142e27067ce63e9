"""Model folders with random weights and a small tokenizer, of any shape."""

from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu_check.device_size import DecoderShape
from tests.support.models import tiny_tokenizer

MAX_POSITIONS = 4_096
STD = 0.06  # large enough that the distributions are not flat


def qwen3_config(shape: DecoderShape, **changes: Any) -> transformers.Qwen3Config:
    """The configuration of a Qwen3 of this shape."""
    return transformers.Qwen3Config(**_dimensions(shape), **changes)


def moe_config(shape: DecoderShape) -> transformers.Qwen3MoeConfig:
    """The configuration of a small mixture of experts of this shape."""
    experts: dict[str, Any] = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": shape.mlp_width // 2,
    }
    return transformers.Qwen3MoeConfig(**_dimensions(shape), **experts, norm_topk_prob=True)


def _dimensions(shape: DecoderShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "initializer_range": STD,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def write_model(folder: Path, config: transformers.PreTrainedConfig, seed: int) -> Path:
    """Save a float32 model with random weights, and a tokenizer."""
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
