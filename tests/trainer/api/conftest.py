"""A cache with hidden and final hidden states of a tiny teacher, a student, and what train-student makes of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.train_config import LossConfig, TrainConfig
from support.commands import Forked, environment, finish
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from trainer.distiller import distill

STEPS, ROWS = 20, 8  # steps of a run, and rows of a step
Figures = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs/demo/cache`` and ``models/student``."""
    folder = tmp_path_factory.mktemp("place")
    write_random_teacher(folder / "models/teacher")
    write_random_teacher(folder / "models/student", seed=3, num_hidden_layers=1)
    write_text_corpus(folder / "corpus", documents=30)
    capture = {"logits": {"k": 16, "temperatures": [1.0]}, "draws": None, "final": {}, "hidden": {"layers": [1]}}
    tree = cache_tree(
        folder / "models/teacher", folder / "corpus", folder / "runs/demo/cache", tokens_per_shard=400, capture=capture
    )
    (folder / "cache.json").write_text(json.dumps(tree))
    done = finish(Forked("teacher-cache", "run", "cache.json", env=environment(), cwd=folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def train_student(place: Path) -> Callable[[LossConfig], Figures]:
    """``train_student(losses)``: loss and gradient norm of every step."""
    known: dict[str, Figures] = {}

    def train(losses: LossConfig) -> Figures:
        text = losses.model_dump_json()
        if text not in known:
            known[text] = run(place, losses, place / f"train-student-{len(known)}")
        return known[text]

    return train


def run(place: Path, losses: LossConfig, output: Path) -> Figures:
    config = TrainConfig.model_validate(
        {
            "data": {"cache": str(place / "runs/demo/cache")},
            "student": {"checkpoint": str(place / "models/student")},
            "losses": losses.model_dump(),
            "optimizer": {"lr": 3e-4, "weight_decay": 0},
            "loop": {"max_steps": STEPS, "micro_batch_size": 2, "gradient_accumulation": ROWS // 2},
            "output": str(output),
        }
    )
    distill(config)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {name: np.array([line[name] for line in lines if "loss" in line]) for name in ("loss", "grad_norm")}
