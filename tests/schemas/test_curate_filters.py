"""Settings of steps: what is refused, and what is meant by default."""

import copy
from typing import Any

import pytest

from schemas.curate_steps import StepSettings
from schemas.errors import UserError
from schemas.load import validate
from schemas.strict import Strict

SET = {"name": "mmlu", "path": "data/mmlu.csv", "fields": ["question"]}
STEPS: dict[str, dict[str, Any]] = {
    "decontaminate": {"step": "decontaminate", "sets": [SET, {**SET, "name": "humaneval", "kind": "code"}]},
    "language": {"step": "language", "keep": ["en", "zh"]},
    "broken_text": {"step": "broken_text"},
    "length": {"step": "length", "min_tokens": 128, "max_tokens": 512, "layers": ["base"]},
    "code": {"step": "code", "layers": ["code"]},
    "reward": {"step": "reward", "model": {"path": "models/reward"}, "label": 0, "bins": [128, 256]},
}


class Steps(Strict):
    """As in a configuration."""

    steps: list[StepSettings]


def read(step: dict[str, Any]) -> Any:
    return validate(Steps, {"steps": [step]}, "curate.yaml").steps[0]


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_told_by_their_name(name: str) -> None:
    step = read(STEPS[name])
    assert step.step == name
    assert type(step)(**step.model_dump()) == step


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("decontaminate", "sets", [], "sets"),
        ("decontaminate", "sets", [SET, SET], "two are named mmlu"),
        ("decontaminate", "sets", [{**SET, "name": "a: b"}], "name"),
        ("decontaminate", "sets", [{**SET, "words": 4}], "words"),
        ("decontaminate", "sets", [{**SET, "format": "generated"}], "format"),
        ("decontaminate", "min_share", 1.5, "min_share"),
        ("language", "keep", [], "keep"),
        ("language", "keep", ["English"], "keep"),
        ("broken_text", "mojibake", "keep", "mojibake"),
        ("length", "min_tokens", 513, "513 is more than max_tokens, 512"),
        ("length", "layers", [], "layers"),
        ("code", "execute", True, "execute"),
        ("reward", "share", 0, "share"),
        ("reward", "bins", [256, 128], "must rise"),
        ("reward", "bins", [128, 128], "must rise"),
        ("reward", "label", -1, "label"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read({**copy.deepcopy(STEPS[name]), key: value})


def test_the_words_in_a_row_of_a_set() -> None:
    text, code = read(STEPS["decontaminate"]).sets
    assert (text.ngram, code.ngram, type(code)(**{**code.model_dump(), "words": 20}).ngram) == (13, 8, 20)
