"""A folder with all that the commands need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


def cache_tree(
    teacher: Path, corpus: Path, cache: Path, *, max_tokens: int = 48, tokens_per_shard: int = 100_000, **changes: Any
) -> dict[str, Any]:
    """A configuration for the transformers engine: ``teacher`` in float32 reads the ``*.txt`` files of ``corpus``."""
    return {
        "teacher": {"path": str(teacher), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu"},
        "corpus": {
            "sources": [{"path": str(corpus), "format": "text", "pattern": "*.txt"}],
            "max_tokens": max_tokens,
        },
        "output": {"path": str(cache), "tokens_per_shard": tokens_per_shard},
        **changes,
    }


@dataclass(frozen=True)
class Workspace:
    """A folder with a tiny teacher, a small corpus, and configurations that name them."""

    folder: Path
    teacher: Path
    corpus: Path

    def cache_config(self, cache: Path, **changes: object) -> Path:
        capture = {"logits": {"k": 16, "temperatures": [1.0, 3.0]}, "draws": None}
        tree = cache_tree(self.teacher, self.corpus, cache, tokens_per_shard=200, capture=capture)
        return self._write("cache.yaml", tree | changes)

    def train_config(self, cache: Path, output: Path, **changes: object) -> Path:
        tree = {
            "data": {"cache": str(cache), "validation_fraction": 0.2},
            "student": {"teacher": str(self.teacher), "from_layers": [0]},
            "optimizer": {"lr": 1e-3},
            "loop": {"max_steps": 12, "micro_batch_size": 4, "save_every": 4, "validate_every": 6},
            "output": str(output),
        }
        return self._write("train.yaml", tree | changes)

    def _write(self, name: str, tree: dict[str, object]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(tree))
        return path
