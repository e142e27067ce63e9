from typing import Any

import pytest

from schemas.matrix_comparison import PairResult
from trainer.matrix.statistics.wording import claim_words, difference_words, p_words, sentence, value_words, verdict

BASE: dict[str, Any] = {
    "a": "A",
    "b": "B",
    "task": "t",
    "words": "",
    "covers": "items",
    "method": "",
    "items": 1000,
    "clusters": 1000,
    "seeds_a": 1,
    "seeds_b": 1,
    "seeds_paired": False,
    "detectable": 0.0,
    "a_better": 0,
    "b_better": 0,
}


def said(difference: float, low: float, high: float, p: float, unit: str = "", up: bool = True, **more: Any) -> str:
    found = PairResult(
        **{**BASE, **more},
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=p,
        verdict=verdict(difference, low, high, p, up),
    )
    return sentence(found, unit, tests=6)


def test_a_share_in_points() -> None:
    words = "A is better (+2.1 points, 95 % interval 0.8 … 3.4, p = 0.002 after Holm)"
    assert said(0.0213, 0.008, 0.0342, 0.0021) == words
    assert said(-0.0213, -0.0342, -0.008, 0.00021) == (
        "A is worse (−2.1 points, 95 % interval −3.4 … −0.8, p < 0.001 after Holm)"
    )


def test_where_lower_is_better() -> None:
    words = "A is better (−0.123 nats, 95 % interval −0.160 … −0.086, p < 0.001 after Holm)"
    assert said(-0.123, -0.16, -0.086, 1e-9, unit="nats", up=False) == words


def test_what_cannot_be_told_says_what_it_takes() -> None:
    assert said(0.006, -0.012, 0.024, 0.51, items_needed=8900) == (
        "cannot tell (+0.6 points, 95 % interval −1.2 … 2.4, p = 0.51 after Holm; "
        "would need n = 8,900 items, here 1,000)"
    )
    assert said(0.006, -0.012, 0.024, 0.51, items_needed=8900, seeds_needed=9, seeds_a=3, seeds_b=1).endswith(
        "would need n = 9 seeds, here 3, or n = 8,900 items, here 1,000)"
    )
    assert said(0.006, -0.012, 0.024, 0.51).endswith("; neither more items nor more seeds alone would do)")
    assert said(0.0, 0.0, 0.0, 1.0).endswith(
        "(0.0 points, 95 % interval 0.0 … 0.0, p = 1.00 after Holm; no difference seen)"
    )


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict_"),
    [
        (0.1, 0.3, 0.05, "better"),
        (0.1, 0.3, 0.051, "cannot tell"),
        (-0.01, 0.3, 0.04, "cannot tell"),
        (0.0, 0.3, 0.04, "cannot tell"),
    ],
)
def test_p_and_interval_must_both_say_so(low: float, high: float, p: float, verdict_: str) -> None:
    assert verdict(0.2, low, high, p, True) == verdict_
    assert verdict(-0.2, -high, -low, p, False) == verdict_
    assert verdict(0.2, low, high, p, False) == verdict_.replace("better", "worse")


@pytest.mark.parametrize(
    ("better", "seen", "verdict"),
    [
        ("A", "better", "borne out by A against B"),
        ("A", "worse", "contradicted by A against B"),
        ("B", "worse", "borne out by B against A"),
        ("B", "better", "contradicted by B against A"),
        ("B", "cannot tell", "neither borne out nor contradicted by B against A"),
    ],
)
def test_a_claim_is_judged_from_its_own_side_and_for_its_pair(better: str, seen: Any, verdict: str) -> None:
    base = BASE | {"words": "such words"}
    found = PairResult(**base, difference=1, low=0.5, high=1.5, p=0.01, p_holm=0.01, verdict=seen)
    assert claim_words("lighter is better", better, found) == (
        f"“lighter is better” is {verdict} on t: such words. This holds for this pair, and says nothing of "
        "other training seeds or other pairs."
    )
    over_seeds = claim_words("lighter is better", better, found.model_copy(update={"covers": "seeds and items"}))
    assert over_seeds.endswith(" This holds for this pair, and says nothing of others.")


def test_one_test_is_not_adjusted() -> None:
    found = PairResult(**BASE, difference=1, low=0.5, high=1.5, p=0.01, p_holm=0.01, verdict="better")
    assert sentence(found, "s", tests=1) == "A is better (+1.00 s, 95 % interval 0.50 … 1.50, p = 0.010)"


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "words"),
    [
        (0.612, 0.589, 0.635, "", "61.2 % (58.9 … 63.5)"),
        (0.5, 0.1, 0.9, "", "50 % (10 … 90)"),
        (1.23456, 1.21, 1.26, "nats", "1.235 nats (1.210 … 1.260)"),
        (12.3456, None, None, "s", "12.3 s"),
        (271_000_000.0, None, None, "bytes", "271,000,000 bytes"),
        (0.0, None, None, "s", "0.0 s"),
        (0.61234, None, None, "", "61.2 %"),
    ],
)
def test_values(value: float, low: float | None, high: float | None, unit: str, words: str) -> None:
    assert value_words(value, low, high, unit) == words


def test_no_negative_zero() -> None:
    assert difference_words(-0.00001, -0.01, 0.01, "") == "0.0 points, 95 % interval −1.0 … 1.0"


@pytest.mark.parametrize(("p", "words"), [(0.0, "< 0.001"), (0.0021, "= 0.002"), (0.048, "= 0.048"), (0.512, "= 0.51")])
def test_p(p: float, words: str) -> None:
    assert p_words(p) == words
