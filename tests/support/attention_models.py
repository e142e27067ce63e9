"""Tiny random models whose attention has what SDPA or Flash Attention leaves out, strong enough to see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    GraniteSWAConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VaultGemmaConfig,
)

from support.models import VOCAB_SIZE, tiny_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CAP = {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 16, "final_logit_softcapping": None}
FULL = ["full_attention"] * 2
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "soft cap, Gemma 2": lambda: Gemma2Config(**SHAPE, **CAP, layer_types=FULL),
    "soft cap, VaultGemma": lambda: VaultGemmaConfig(**SHAPE, **CAP, layer_types=FULL),
    "sinks, gpt-oss": lambda: GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, layer_types=FULL),
    "sinks, Granite SWA": lambda: GraniteSWAConfig(**SHAPE, layer_types=FULL),
}


def special_model(kind: str) -> PreTrainedModel:
    """In float32 with eager attention; weights are large, so that attention is far from even."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.fill_(3.0)
            elif weight.ndim > 1:
                weight.normal_(0, 0.25)
    return model


def write_special(folder: Path, kind: str) -> Path:
    """The model as a folder, with a tokenizer."""
    special_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def without_the_feature(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits as a kernel gives them that leaves the feature out."""
    model.config._attn_implementation = "sdpa"
    try:
        return model(ids, use_cache=False).logits
    finally:
        model.config._attn_implementation = "eager"
