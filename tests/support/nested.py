"""Tiny multimodal models whose language model has a configuration of its own, as Gemma 3 and Qwen3.5 have."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

KINDS = ("gemma3", "qwen3_5")
VOCABULARY = 61
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


def nested_model(kind: str) -> PreTrainedModel:
    """A random model with a vision tower and four text layers of two types."""
    torch.manual_seed(0)
    if kind == "gemma3":
        gemma = Gemma3Config(
            text_config={**TEXT, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8},
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            mm_tokens_per_image=4,
            image_token_index=60,
            boi_token_index=59,
            eoi_token_index=58,
        )
        return Gemma3ForConditionalGeneration(gemma).eval()
    linear = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
    linear |= {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
    qwen = Qwen3_5Config(
        text_config={**TEXT, **linear, "layer_types": ["linear_attention", "full_attention"] * 2},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
        },
        image_token_id=60,
        video_token_id=59,
        vision_start_token_id=58,
        vision_end_token_id=57,
    )
    return Qwen3_5ForConditionalGeneration(qwen).eval()


def text_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a text, as the whole model computes them."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def write_nested(folder: Path, kind: str) -> Path:
    """The model's folder as ``save_pretrained`` writes it: with the names that a hub's folders have."""
    nested_model(kind).save_pretrained(folder)
    return folder
