"""The programs of docs/other-trainers.md: short, and step by step what train-student does."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.train_config import LossConfig
from support.markdown_pages import ROOT, Block, blocks
from support.step_figures import assert_same_steps, step_figures

PROGRAMS = {
    name: block
    for block in blocks(ROOT / "docs/other-trainers.md")
    for name in ("for number, batch", "DistillationTrainer(student", "MyTrainer(Trainer)", "SFTTrainer", "lightning")
    if block.language == "python" and name in block.text
}
MOST_LINES = 15
MICRO_BATCHES = 4


def lines_of(program: Block) -> int:
    return len([line for line in program.text.splitlines() if line.strip() and not line.lstrip().startswith("#")])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_trains_as_train_student_does(
    name: str, place: Path, train_student: Callable[[LossConfig], dict[str, np.ndarray]]
) -> None:
    program, variables = PROGRAMS[name], {"__name__": "program"}
    with contextlib.chdir(place):
        code = compile(program.text, program.place, "exec")
        found = step_figures(lambda: exec(code, variables), MICRO_BATCHES)
    loss: Any = variables["loss"]
    wanted = train_student(loss.dataset.losses)
    assert lines_of(program) <= MOST_LINES
    assert wanted["loss"][-1] < wanted["loss"][0]
    assert_same_steps(found, wanted)


def test_all_trainers_are_there() -> None:
    assert len(PROGRAMS) == 5
