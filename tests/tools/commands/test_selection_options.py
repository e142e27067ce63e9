"""Text forms of selections: what they mean, and one clear line where they mean nothing."""

from decimal import Decimal

import pytest

from schemas.errors import UserError
from tools.commands.selection_options import parse_parts, parse_selection


def test_valid_options_are_parsed() -> None:
    assert parse_selection(None, None, (), None) is None
    found = parse_selection("hidden, tokens", "0-99,200", ("code", "math"), "2.5%")
    assert found.signals == ["logits", "hidden"]
    assert found.shards == [(0, 99), (200, 200)]
    assert found.layers == ["code", "math"]
    assert found.share == (0, 0.025)
    assert parse_parts("train=90%, validation=10%") == {"train": Decimal("0.9"), "validation": Decimal("0.1")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("logit", None, (), None), r"--signals logit: 'logit' is not a signal; choose from logits, draws"),
        (("", None, (), None), r"--signals : '' is not a signal"),
        ((None, "5-3", (), None), r"--shards 5-3: '5-3' is not a number or range; use for example 0-99,200"),
        ((None, "1,,2", (), None), r"--shards 1,,2: ''"),
        ((None, "-1", (), None), r"--shards -1: '-1'"),
        ((None, "1234567890", (), None), r"--shards 1234567890"),
        ((None, None, (), "1"), r"--sample 1: expected a percentage above 0% and up to 100%"),
        ((None, None, (), "0%"), r"--sample 0%"),
        ((None, None, (), "101%"), r"--sample 101%"),
        ((None, None, (), "nan%"), r"--sample nan%"),
    ],
)
def test_invalid_options_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_selection(*arguments)


@pytest.mark.parametrize("text", ["", "train", "train=", "=5%", "a=1%,a=2%", "a=0%", "a=1%,"])
def test_invalid_parts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--parts"):
        parse_parts(text)
