"""Small training runs: a tiny random student and a synthetic cache, in any folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas.train_config import TrainConfig
from support.synthetic import random_shards, write_cache

VOCABULARY = 61
MakeRun = Callable[..., TrainConfig]
SHAPE: dict[str, Any] = {  # of students without a folder
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_student(folder: Path, seed: int = 2) -> Path:
    """A random Llama of two layers without a tokenizer."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **shape, **ids)).save_pretrained(folder)
    return folder


def training_in(folder: Path) -> MakeRun:
    """``make(output, loop={...}, …)``: six steps, a checkpoint every two, with changes by group."""
    lengths = np.random.default_rng(0).integers(3, 20, (4, 10)).tolist()
    write_cache(str(folder / "cache"), random_shards(lengths, VOCABULARY, seed=0), VOCABULARY)
    write_student(folder / "student")

    def make(output: Path, **changes: dict[str, Any]) -> TrainConfig:
        tree: dict[str, Any] = {
            "data": {"cache": str(folder / "cache")},
            "student": {"checkpoint": str(folder / "student")},
            "optimizer": {"lr": 3e-3},
            "loop": {"max_steps": 6, "micro_batch_size": 2, "gradient_accumulation": 2, "save_every": 2},
        }
        for group, values in changes.items():
            tree[group] = {**tree.get(group, {}), **values}
        return TrainConfig.model_validate({**tree, "output": str(output)})

    return make
