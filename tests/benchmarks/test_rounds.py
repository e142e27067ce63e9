"""What the experiment with rounds makes of its students' texts and figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.rounds import ARMS, MEASURES, divergences, plot, repeated, table
from benchmarks.support.docstrings import docstring_chats

FORM = {"replies": 8, "rejected": {"truncated": 3, "repetitive": 1}}
MEASURED = {arm: [dict.fromkeys(MEASURES, n + 0.1 * seed) | FORM for seed in range(3)] for n, arm in enumerate(ARMS)}
BEFORE = dict.fromkeys(MEASURES, 9.0) | FORM
REPLIES = {"tokens": 20.0, "repeated": 3.0} | FORM


class Fixed:
    """A model whose every row is the same."""

    def __init__(self, *probabilities: float) -> None:
        self.row_V = torch.tensor(probabilities).log()

    def __call__(self, inputs: torch.Tensor, logits_to_keep: int) -> Any:
        return type("Output", (), {"logits": self.row_V.expand(*inputs.shape, -1)[:, -logits_to_keep:]})


def test_divergences_are_means_over_the_tokens_of_replies() -> None:
    student, teacher = Fixed(0.5, 0.5), Fixed(0.25, 0.75)
    forward, reverse = divergences(student, teacher, [([0, 1, 0], 1), ([1, 1], 1)])
    assert forward == pytest.approx(float(teacher.row_V.exp() @ (teacher.row_V - student.row_V)))
    assert reverse == pytest.approx(float(student.row_V.exp() @ (student.row_V - teacher.row_V)))


def test_repetition_counts_what_a_reply_had_before() -> None:
    assert repeated([[1, 2, 3, 4, 5, 6]]) == 0
    assert repeated([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(100 / 5)
    assert repeated([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0, "other replies do not count"
    assert repeated([[1, 2]]) == 0


def test_every_measure_has_all_arms() -> None:
    rows = table(BEFORE, MEASURED, REPLIES)
    assert len(rows) == (len(MEASURES) + 1) * (1 + len(ARMS)) + 3
    assert (rows[-1].value, rows[-1].unit) == (50, "%")
    assert {row.what: row.value for row in rows}[f"… {ARMS[1]} (1 … 1.2)"] == pytest.approx(1.1)
    assert not any(row.bar for row in rows)


def test_the_students_become_a_picture(tmp_path: Path) -> None:
    plot(BEFORE, MEASURED, REPLIES, tmp_path / "arms.png")
    with Image.open(tmp_path / "arms.png") as image:
        assert image.size == (1210, 495)


def test_no_question_is_on_both_sides() -> None:
    training, held_out = ({chat["messages"][0]["content"] for chat in chats} for chats in docstring_chats())
    assert not training & held_out
    assert min(len(training), len(held_out)) > 64
