"""A short run of a tiny student on a small synthetic cache."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas.train_config import TrainConfig
from support.synthetic import random_shards, write_cache

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def write_small_cache(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A cache of 40 samples of 3 to 19 tokens in four shards."""
    lengths = np.random.default_rng(seed).integers(3, 20, (4, 10)).tolist()
    write_cache(str(folder), random_shards(lengths, VOCABULARY, seed=seed), VOCABULARY, **settings)
    return folder


def write_small_student(folder: Path, **changes: Any) -> Path:
    """A random Llama without a tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).save_pretrained(folder)
    return folder


def small_settings(cache: Path, student: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The tree of a configuration of one step, with changes by group."""
    tree: dict[str, Any] = {
        "data": {"cache": str(cache)},
        "student": {"checkpoint": str(student)},
        "loop": {"max_steps": 1, "micro_batch_size": 2},
        "output": str(output),
    }
    for group, values in changes.items():
        tree[group] = {**tree.get(group, {}), **values} if isinstance(values, dict) else values
    return tree


def small_config(cache: Path, student: Path, output: Path, **changes: Any) -> TrainConfig:
    """The same, validated."""
    return TrainConfig.model_validate(small_settings(cache, student, output, **changes))
