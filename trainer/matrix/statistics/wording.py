"""The words of a comparison: made here only, from the numbers that stand beside them.

A difference is real in words when its p after Holm is at most 5 % and its own interval excludes 0; everything else is
"cannot tell", never "equal". Shares are shown in percent, their differences in points; numbers have two digits of half
the width of their interval.
"""

import math

from schemas.matrix_comparison import PairResult, Verdict

OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}


def verdict(difference: float, low: float, high: float, p_holm: float, higher_is_better: bool) -> Verdict:
    """Whether a is better than b; ``difference`` is a - b."""
    if p_holm > 0.05 or low <= 0 <= high:
        return "cannot tell"
    return "better" if (difference > 0) == higher_is_better else "worse"


def sentence(found: PairResult, unit: str, tests: int) -> str:
    """The verdict with its numbers: ``A is better (+2.1 points, 95 % interval 0.8 … 3.4, p = 0.002 after Holm)``."""
    numbers = f"{difference_words(found.difference, found.low, found.high, unit)}, p {p_words(found.p_holm)}"
    if tests > 1:
        numbers += " after Holm"
    if found.verdict != "cannot tell":
        return f"{found.a} is {found.verdict} ({numbers})"
    return f"cannot tell ({numbers}; {needed_words(found)})"


def claim_words(says: str, better: str, found: PairResult) -> str:
    """The verdict on a claim that ``better`` is the better side of a pair, and on nothing else."""
    ours = found.verdict if found.a == better else OPPOSITE[found.verdict]
    said = {"better": "borne out", "worse": "contradicted", "cannot tell": "neither borne out nor contradicted"}[ours]
    other = found.b if found.a == better else found.a
    beyond = "other training seeds or other pairs" if found.covers == "items" else "others"
    return (
        f"“{says}” is {said} by {better} against {other} on {found.task}: {found.words}. "
        f"This holds for this pair, and says nothing of {beyond}."
    )


def untested_words(says: str, better: str, than: str, task: str) -> str:
    """That a claim was not tested: a cell has failed, or the sides have too few items in common."""
    return f"“{says}” was not tested: {better} and {than} are not compared on {task}."


def needed_words(found: PairResult) -> str:
    """What it would take to find a difference as large as the one seen."""
    if not found.difference:
        return "no difference seen"
    ways = []
    if found.seeds_needed is not None:
        seeds = min(count for count in (found.seeds_a, found.seeds_b) if count > 1)
        ways.append(f"n = {found.seeds_needed:,} seeds, here {seeds:,}")
    if found.items_needed is not None:
        ways.append(f"n = {found.items_needed:,} items, here {found.items:,}")
    return f"would need {', or '.join(ways)}" if ways else "neither more items nor more seeds alone would do"


def difference_words(difference: float, low: float, high: float, unit: str) -> str:
    """``+2.1 points, 95 % interval 0.8 … 3.4``."""
    factor, name = (100.0, "points") if unit == "" else (1.0, unit)
    digits = decimals(factor * (high - low) / 2, factor * difference)
    value = number(factor * difference, digits, sign=True)
    return f"{value} {name}, 95 % interval {number(factor * low, digits)} … {number(factor * high, digits)}"


def value_words(value: float, low: float | None, high: float | None, unit: str) -> str:
    """``61.2 % (58.9 … 63.5)``, or the value alone."""
    factor, name = (100.0, "%") if unit == "" else (1.0, unit)
    if low is None or high is None:
        return f"{number(factor * value, decimals(0.0, factor * value))} {name}"
    digits = decimals(factor * (high - low) / 2, factor * value)
    low_words, high_words = number(factor * low, digits), number(factor * high, digits)
    return f"{number(factor * value, digits)} {name} ({low_words} … {high_words})"


def p_words(p: float) -> str:
    """``= 0.002``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def decimals(half_width: float, value: float) -> int:
    """Decimals that show two digits of the half width; without one, three of the value."""
    if half_width > 0:
        return min(max(1 - math.floor(math.log10(half_width)), 0), 12)
    return min(max(2 - math.floor(math.log10(abs(value))), 0), 12) if value else 1


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with ``digits`` decimals, thousands separators and a true minus sign; nothing is "-0.0"."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''},.{digits}f}".replace("-", "−")
