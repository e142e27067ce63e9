"""What ``trainer.api`` shows: names, and the example of its docstring."""

import doctest
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from trainer import api


def test_names_are_there() -> None:
    for name in api.__all__:
        assert getattr(api, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = api.Trainer


def test_the_example_runs(place: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    done = doctest.testmod(api, extraglobs={"url": str(place / "runs/demo/cache"), "student": student})
    assert done.attempted == 4
    assert done.failed == 0
