import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.statistics.right_or_wrong import mcnemar_p, paired_share_interval, share_interval

Z = 1.959963984540054


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (2, 8), (9, 1), (0, 10)])
def test_mcnemar_counts_all_coins(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    heads = [sum(coins) for coins in product((0, 1), repeat=n)]
    far = sum(abs(2 * count - n) >= abs(only_a - only_b) for count in heads)
    assert mcnemar_p(only_a, only_b) == pytest.approx(far / 2**n)


def test_mcnemar_of_a_large_benchmark_does_not_overflow() -> None:
    z = 299 / math.sqrt(3300)  # corrected for continuity
    assert mcnemar_p(1800, 1500) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.03)
    assert mcnemar_p(4000, 1000) < 1e-300


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_the_paired_interval_is_walds_with_two_items_more(only_a: int, only_b: int, same: int) -> None:
    n = only_a + only_b + same
    difference_N = np.repeat([1.0, -1.0, 0.0], [only_a + 1, only_b + 1, same])
    half = Z * math.sqrt(difference_N.var() / (n + 2))
    low, high = paired_share_interval(only_a, only_b, n)
    assert low == pytest.approx(max(difference_N.mean() - half, -1))
    assert high == pytest.approx(min(difference_N.mean() + half, 1))


def test_the_paired_interval_covers_by_exact_sums() -> None:
    """All tables of 60 items, each with its probability: 14 % right for a only, 11 % for b only."""
    covered = 0.0
    for a in range(61):
        for b in range(61 - a):
            low, high = paired_share_interval(a, b, 60)
            if low <= 0.03 <= high:
                ways = math.comb(60, a) * math.comb(60 - a, b)
                covered += ways * 0.14**a * 0.11**b * 0.75 ** (60 - a - b)
    assert 0.945 < covered < 0.965


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0.5, 5))
def test_wilsons_ends_are_as_far_as_the_quantile(right: int, wrong: int, quantile: float) -> None:
    n = right + wrong
    for end in share_interval(right / n, n, quantile):
        error = math.sqrt(end * (1 - end) / n)
        assert end in (0, 1) or abs(right / n - end) == pytest.approx(quantile * error, abs=1e-9)


def test_wilson_near_one() -> None:
    assert share_interval(1.0, 20, Z) == pytest.approx((20 / (20 + Z**2), 1.0))
