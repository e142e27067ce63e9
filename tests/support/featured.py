"""A cache with features of its teacher, and a student that can learn from them."""

from pathlib import Path
from typing import Any

from schemas.cache_config import CacheConfig
from schemas.load import validate
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job


def capture_features(folder: Path) -> dict[str, Any]:
    """Capture hidden states and attention rows; returns settings of a run whose student has its teacher's layers."""
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "texts", documents=30)
    capture = {
        "logits": {"k": 8},
        "draws": None,
        "hidden": {"layers": [1, 2]},
        "attention": {"heads": 1, "positions": {"every": 3}},
    }
    job.run(validate(CacheConfig, cache_tree(teacher, corpus, folder / "cache", capture=capture), "test"))
    student = {"checkpoint": None, "teacher": str(teacher), "from_layers": [0, 1]}
    return {"data": {"cache": str(folder / "cache")}, "student": student}
