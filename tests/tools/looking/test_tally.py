"""Means and quantiles against numpy's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tools.looking.tally import BINS, QUANTILES, Groups, Tally


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(1, 4))
def test_quantiles_are_off_by_one_bin_at_most(values: list[float], parts: int) -> None:
    tally = Tally(10.0)
    for part in np.array_split(np.array(values), parts):
        tally.add(part)
    assert tally.n == len(values)
    np.testing.assert_allclose(tally.mean, np.mean(values), atol=1e-9)
    ordered = np.sort(values)
    for share in QUANTILES:
        lower = ordered[max(0, int(np.ceil(share * len(values))) - 1)]
        assert lower - 10 / BINS - 1e-9 <= tally.quantile(share) <= lower + 10 / BINS + 1e-9


def test_values_above_the_range_count_in_the_mean() -> None:
    tally = Tally(1.0)
    tally.add(np.array([0.5, 99.5]))
    assert tally.mean == 50
    assert tally.counts[-1] == 1
    assert tally.summary()["p95"] <= 1


def test_nothing_added() -> None:
    tally = Tally(1.0)
    tally.add(np.empty(0))
    assert set(tally.summary().values()) == {0.0}


def test_groups_are_bounded() -> None:
    groups = Groups(list, "rest", most=2)
    for name in ("a", "b", "c", "d", "a", "x" * 500):
        groups[name].append(name)
    assert groups.by_name == {"a": ["a", "a"], "b": ["b"], "rest": ["c", "d", "x" * 500]}


def test_long_names_are_cut() -> None:
    groups = Groups(list, "rest")
    groups["x" * 500].append(1)
    assert groups.by_name == {"x" * 199 + "…": [1]}
