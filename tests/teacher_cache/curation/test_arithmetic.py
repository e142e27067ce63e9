"""Statements of random expressions against Python's own fractions, and texts that mean harm."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.curation.arithmetic import Statement, statements

NUMBERS = st.integers(0, 10**6).map(str) | st.decimals(0, 1000, places=2).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", " - ", " * ", "/"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=6,
)


def value(expression: str) -> Fraction | None:
    """What Python makes of it, each number being a fraction."""
    source = re.sub(r"\d+(?:\.\d+)?", lambda number: f'Fraction("{number[0]}")', expression)
    try:
        return Fraction(eval(source, {"Fraction": Fraction}))
    except ZeroDivisionError:
        return None


@given(EXPRESSIONS, EXPRESSIONS)
def test_values_are_those_of_python(left: str, right: str) -> None:
    found = statements(f"So we get {left} = {right}.")
    if not any(operator in left + right for operator in "+-*/"):
        assert found == []
    else:
        ((_, _, holds),) = found
        exact = value(left) is not None and value(left) == value(right)
        assert holds == exact or (holds and "." in left + right), "a number of two places may be rounded"


@given(EXPRESSIONS.filter(lambda text: any(operator in text for operator in "+-*/")), st.integers(-9, 9))
def test_a_result_that_is_written_out_holds_and_another_does_not(expression: str, error: int) -> None:
    exact = value(expression)
    if exact is None:
        assert not statements(f"So {expression} = 0")[0].holds
        return
    shown = exact + error
    ((_, _, holds),) = statements(f"So {expression} = ({shown.numerator}) / {shown.denominator}")
    assert holds == (error == 0)


def test_statements_are_found_where_they_stand() -> None:
    assert statements("First 2 + 3 = 5, then 5 × 4 = 20; so 20 - 1 = 18.\n`7 * 8 = 56`") == [
        Statement("2 + 3", "5", True),
        Statement("5 * 4", "20", True),
        Statement("20 - 1", "18", False),
        Statement("7 * 8", "56", True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "1" * 100_000 + " = 1 + 1",
        "(" * 100_000 + "1 + 1 = 2" + ")" * 100_000,
        "1 + 1 = " * 5_000,
        "\\frac{" * 20_000 + "1}{1} = 1",
        "a" * 100_000 + " 1 + 1 = 2",
        "\n" * 100_000 + "- " * 50_000 + "1 + 1 = 2",
        "1:" * 50_000 + " = 1 + 1",
        "```\n" * 25_000,
        "9" * 60 + " ^ 128 = 1 + 1",
        "2 ^ 2 ^ 2 ^ 2 ^ 2 ^ 2 ^ 2 = 1",
        "1 / (1 - 1) = 1 / 0",
    ],
    ids=range(11),
)
def test_hostile_texts_take_little_time(text: str) -> None:
    started = time.process_time()
    statements(text)
    assert time.process_time() - started < 5
