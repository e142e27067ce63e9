"""A folder with all that small rounds need: a student that writes what is known, a random teacher, a base cache."""

from pathlib import Path
from typing import Any

import yaml

from schemas.cache_config import CacheConfig
from schemas.load import validate
from schemas.rounds_config import RoundsConfig
from support.models import write_random_teacher, write_text_corpus
from support.talking import generate_tree, write_prompts, write_talking_generator
from support.workspace import cache_tree
from teacher_cache.job import run


def write_small_rounds(folder: Path) -> Path:
    """Write the models, prompts and base cache of ``rounds_tree``; returns the folder."""
    write_talking_generator(folder / "student")
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "corpus")
    write_prompts(folder / "prompts.jsonl", 8)
    tree = cache_tree(teacher, corpus, folder / "base", capture={"logits": {"k": 16}})
    run(validate(CacheConfig, tree, "test"))
    return folder


def rounds_tree(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Two rounds of three steps each, with reverse KL; ``changes`` of whole keys, or of single keys of its parts."""
    asked = generate_tree(folder / "student", folder / "prompts.jsonl", output)
    del asked["generator"]["path"], asked["output"]["path"]
    tree: dict[str, Any] = {
        "rounds": 2,
        "generate": asked,
        "score": {
            "teacher": {"path": str(folder / "teacher"), "dtype": "float32"},
            "engine": {"kind": "transformers", "device": "cpu"},
            "output": {"tokens_per_shard": 200},
        },
        "train": {
            "data": {"cache": str(folder / "base")},
            "student": {"checkpoint": str(folder / "student")},
            "losses": {"tla": {"target": "top_k"}},
            "optimizer": {"lr": 1e-5},
            "loop": {"max_steps": 3, "micro_batch_size": 4, "save_every": 1},
        },
        "divergence": "reverse",
        "least_accepted": 0.2,
        "output": str(output),
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return tree


def rounds_config(folder: Path, output: Path, **changes: Any) -> RoundsConfig:
    """The same as a model."""
    return validate(RoundsConfig, rounds_tree(folder, output, **changes), "rounds.yaml")


def write_rounds(folder: Path, output: Path, **changes: Any) -> Path:
    """The same as a file."""
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(rounds_tree(folder, output, **changes)))
    return path
