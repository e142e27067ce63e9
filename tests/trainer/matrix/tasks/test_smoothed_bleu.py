"""Against the evaluator of CodeXGLUE as lm-eval ships it, and against the formula, written another way."""

import math
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.tasks.smoothed_bleu import smoothed_bleu

TEXT = st.text(st.sampled_from("ab c_.,-'\"&<1é中\n"), max_size=40)
CASES = [
    ("Returns the maximum of two tokens.", "Returns the maximum of two integers."),
    ("a b c d e", "a b c d e"),
    ("a a a a", "a"),
    ("", "one two"),
    ("one", ""),
    ("snake_case __init__ 3.5-x don't", "snake case init 3.5 - x dont"),
    ("Überprüft die Länge", "prüft die Länge"),
]


def by_formula(written: str, wanted: str) -> float:
    """Products of smoothed precisions and the brevity penalty, in float64."""

    def words(text: str) -> list[str]:
        found = [""]
        for c in text.lower():
            if c.isalnum():
                found[-1] += c
            else:
                found += [c, ""]
        return [word for word in found if word.strip()]

    ours, theirs = words(written), words(wanted)
    precisions = []
    for n in range(1, 5):
        counts, known = (Counter(tuple(each[i : i + n]) for i in range(len(each) - n + 1)) for each in (ours, theirs))
        matched, total = sum(min(count, known[gram]) for gram, count in counts.items()), sum(counts.values())
        if n > 1:
            precisions.append((matched + 1) / (total + 1))
        else:
            precisions.append(1.0 if total == 0 else max(matched, np.finfo(float).tiny) / total)
    penalty = min(1.0, math.exp(1 - (len(theirs) + 1) / (len(ours) + 1)))
    return 100 * float(np.prod(np.array(precisions, np.float64) ** 0.25)) * penalty


@given(TEXT, TEXT)
def test_it_is_the_formula(written: str, wanted: str) -> None:
    assert smoothed_bleu(written, wanted) == pytest.approx(by_formula(written, wanted), rel=1e-12)


@pytest.mark.parametrize(("written", "wanted"), CASES)
def test_cases_are_the_formula(written: str, wanted: str) -> None:
    assert smoothed_bleu(written, wanted) == pytest.approx(by_formula(written, wanted), rel=1e-12)


def test_it_is_the_published_evaluator() -> None:
    lm_eval = pytest.importorskip("lm_eval")
    folder = Path(lm_eval.__file__).parent / "tasks" / "code_x_glue" / "code-text"
    published = runpy.run_path(str(folder / "bleu.py"))["smoothed_bleu_4"]

    @given(TEXT, TEXT)
    def same(written: str, wanted: str) -> None:
        assert smoothed_bleu(written, wanted) == pytest.approx(published([wanted], [written]), rel=1e-12)

    same()
    for written, wanted in CASES:
        assert smoothed_bleu(written, wanted) == pytest.approx(published([wanted], [written]), rel=1e-12)


def test_known_values() -> None:
    assert smoothed_bleu("a b c d", "a b c d") == pytest.approx(100)
    assert smoothed_bleu("a b x y", "a b c d") == pytest.approx(100 * (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)
