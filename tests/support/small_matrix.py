"""A folder with all that a small matrix needs: random models, two caches of one teacher."""

from pathlib import Path
from typing import Any

import yaml

from schemas.cache_config import CacheConfig
from schemas.load import validate
from schemas.matrix_config import MatrixConfig
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache.job import run


def write_small_matrix(folder: Path) -> Path:
    """Write the models and caches of ``matrix_tree``; returns the folder."""
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "corpus", 4, 24)
    run(validate(CacheConfig, cache_tree(teacher, corpus, folder / "cache", capture={"logits": {"k": 16}}), "test"))
    for seed in (1, 2):
        write_random_teacher(folder / f"student-{seed}", seed)
    return folder


def matrix_tree(folder: Path, output: Path, n_tasks: int = 2, **changes: Any) -> dict[str, Any]:
    """Three models on ``n_tasks`` tasks, the first one of a whole cache, others of its first documents."""
    students = [{"name": f"student {n}", "folder": str(folder / f"student-{n}"), "arm": "a", "seed": n} for n in (1, 2)]
    limits = [{}, *({"limit": n} for n in range(1, n_tasks))]
    return {
        "models": [{"name": "teacher", "folder": str(folder / "teacher")}, *students],
        "tasks": [
            {"kind": "distillation", "name": f"documents {n}", "cache": str(folder / "cache"), **limit}
            for n, limit in enumerate(limits)
        ],
        "output": str(output),
        **changes,
    }


def matrix_config(folder: Path, output: Path, **changes: Any) -> MatrixConfig:
    """The same as a model."""
    return validate(MatrixConfig, matrix_tree(folder, output, **changes), "matrix.yaml")


def write_matrix(folder: Path, output: Path, **changes: Any) -> Path:
    """Write the configuration beside its output; returns its path."""
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(matrix_tree(folder, output, **changes)))
    return path
