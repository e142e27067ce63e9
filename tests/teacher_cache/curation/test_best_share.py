"""The best share of each group is exact."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.curation.best_share import best_share


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=200),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_of_each_group_exactly_the_share_stays_and_nothing_better_leaves(
    records: list[tuple[int, int]], percent: int, rng: np.random.Generator
) -> None:
    group_N, score_N = (np.array(column) for column in zip(*records, strict=True))
    number_N = np.array(rng.sample(range(10**9), len(records)))  # type: ignore[attr-defined]
    kept_N = best_share(score_N.astype(np.float32), group_N, number_N, percent / 100)
    for group in np.unique(group_N):
        of_group = group_N == group
        assert kept_N[of_group].sum() == math.ceil(percent * of_group.sum() / 100)
        left = score_N[of_group & ~kept_N]
        assert not len(left) or score_N[of_group & kept_N].min() >= left.max()


@pytest.mark.parametrize(("share", "n", "wanted"), [(0.07, 100, 7), (0.3, 10, 3), (0.1, 30, 3), (0.3, 1, 1), (1, 9, 9)])
def test_the_count_is_that_of_the_decimal_share(share: float, n: int, wanted: int) -> None:
    """In binary, 0.07 · 100 is more than 7."""
    zeros = np.zeros(n)
    assert best_share(zeros, zeros.astype(int), np.arange(n), share).sum() == wanted


def test_equal_scores_are_told_apart_by_their_number_alone() -> None:
    """The same records stay in any order, spread over the input."""
    number_N = np.arange(10_000)
    zeros = np.zeros(len(number_N), np.float32)
    kept_N = best_share(zeros, zeros.astype(int), number_N, 0.3)
    order_N = np.random.default_rng(0).permutation(len(number_N))
    assert np.array_equal(best_share(zeros, zeros.astype(int), number_N[order_N], 0.3), kept_N[order_N])
    assert kept_N.sum() == 3000
    assert abs(kept_N[:5000].sum() - 1500) < 120
