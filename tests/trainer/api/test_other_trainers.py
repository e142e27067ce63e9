"""The programs of docs/other-trainers.md: short, and step by step what train-student does."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.train_config import LossConfig, TrainConfig
from support.commands import Forked, environment, finish
from support.markdown_pages import ROOT, Block, blocks
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from trainer.distiller import distill
from trainer.losses.student_pass import StepShare, StudentPass

PAGE = ROOT / "docs/other-trainers.md"
PROGRAMS = [block for block in blocks(PAGE) if block.language == "python" and "models/student" in block.text]
STEPS, ACCUMULATED = 20, 4
MOST_LINES = 15


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the programs name: a cache with hidden states, and a student."""
    folder = tmp_path_factory.mktemp("place")
    write_random_teacher(folder / "models/teacher")
    write_random_teacher(folder / "models/student", seed=3, num_hidden_layers=1)
    write_text_corpus(folder / "corpus", documents=30)
    capture = {"logits": {"k": 16, "temperatures": [1.0]}, "draws": None, "hidden": {"layers": [1]}}
    tree = cache_tree(folder / "models/teacher", folder / "corpus", folder / "runs/demo/cache", capture=capture)
    (folder / "cache.json").write_text(json.dumps(tree))
    done = finish(Forked("teacher-cache", "run", "cache.json", env=environment(), cwd=folder))
    assert done.returncode == 0, done.stderr
    return folder


def lines_of(program: Block) -> int:
    return len([line for line in program.text.splitlines() if line.strip() and not line.lstrip().startswith("#")])


def train_student(place: Path, losses: LossConfig) -> dict[str, np.ndarray]:
    """Losses and gradient norms of train-student, step by step."""
    output = place / "train-student"
    config = TrainConfig.model_validate(
        {
            "data": {"cache": str(place / "runs/demo/cache")},
            "student": {"checkpoint": str(place / "models/student")},
            "losses": losses.model_dump(),
            "optimizer": {"lr": 3e-4, "weight_decay": 0},
            "loop": {
                "max_steps": STEPS,
                "micro_batch_size": 2,
                "gradient_accumulation": ACCUMULATED,
                "resume": False,
                "log_every": 1,
            },
            "output": str(output / str(abs(hash(losses.model_dump_json())))),
        }
    )
    distill(config)
    lines = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    return {name: np.array([line[name] for line in lines if "loss" in line]) for name in ("loss", "grad_norm")}


def run(program: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Losses and gradient norms of a program, step by step, and its variables."""
    shares: list[float] = []
    norms: list[float] = []
    share_of, clip = StudentPass.share, torch.nn.utils.clip_grad_norm_

    def share(*given: Any, **named: Any) -> StepShare:
        found = share_of(*given, **named)
        shares.append(float(found.loss.detach()))
        return found

    def clipped(*given: Any, **named: Any) -> torch.Tensor:
        norm = clip(*given, **named)
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(StudentPass, "share", share)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    namespace: dict[str, Any] = {"__name__": "program"}
    with contextlib.chdir(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(program.text, program.place, "exec"), namespace)
    return {"loss": np.array(shares).reshape(STEPS, ACCUMULATED).sum(axis=1), "grad_norm": np.array(norms)}, namespace


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_trains_as_train_student_does(number: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[number]
    found, namespace = run(program, place, monkeypatch)
    monkeypatch.undo()
    wanted = train_student(place, namespace["loss"].dataset.losses)
    assert lines_of(program) <= MOST_LINES
    assert wanted["loss"][-1] < wanted["loss"][0]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=0, err_msg=name)
