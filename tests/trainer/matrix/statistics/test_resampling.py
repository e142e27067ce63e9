import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.matrix.statistics import resampling
from trainer.matrix.statistics.clustered import clustered_mean
from trainer.matrix.statistics.resampling import bootstrap_mean, standard_error, studentised_means
from trainer.matrix.statistics.two_levels import Noise

SKEWED = np.random.default_rng(0).lognormal(0, 1, 60)


def test_it_approaches_the_enumeration_of_all_resamples() -> None:
    """Four clusters of unequal size have 256 resamples, here written out."""
    value_N = np.array([1.0, 2.0, 4.0, -3.0, 7.0, 0.5])
    cluster_N = np.array([0, 0, 1, 2, 2, 3])
    members = [value_N[cluster_N == code] for code in range(4)]
    every = []
    for drawn in product(range(4), repeat=4):
        values = np.concatenate([members[code] for code in drawn])
        codes = np.repeat(np.arange(4), [len(members[code]) for code in drawn])
        sums = np.bincount(codes, weights=values - values.mean())
        error = np.sqrt((sums**2).sum() * 4 / 3) / len(values)
        with np.errstate(divide="ignore"):
            every.append(abs(values.mean() - value_N.mean()) / error)
    t_B = studentised_means(value_N, cluster_N, 40_000)
    limits = np.quantile([t for t in every if np.isfinite(t)], [0.1, 0.5, 0.8, 0.9]) * (1 + 1e-9)
    wanted = [np.mean(np.array(every) <= limit) for limit in limits]
    assert [np.mean(t_B <= limit) for limit in limits] == pytest.approx(wanted, abs=0.01)
    assert np.isinf(t_B).mean() == pytest.approx(np.isinf(every).mean(), abs=0.005)


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    cluster_N = np.arange(60)
    assert bootstrap_mean(SKEWED, cluster_N) == bootstrap_mean(SKEWED, cluster_N)
    assert bootstrap_mean(SKEWED, cluster_N)[0] != bootstrap_mean(SKEWED, cluster_N, seed=1)[0]


def test_how_many_are_drawn_at_once_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = studentised_means(SKEWED, np.arange(60), 999)
    monkeypatch.setattr(resampling, "AT_ONCE", 60 * 7)
    assert studentised_means(SKEWED, np.arange(60), 999).tolist() == whole.tolist()


@settings(max_examples=30)
@given(st.floats(-0.6, 0.6), st.integers(0, 5))
def test_p_and_interval_agree(shift: float, seed: int) -> None:
    value_N = SKEWED - SKEWED.mean() + shift
    half, p = bootstrap_mean(value_N, np.arange(60) // 2, resamples=499, seed=seed)
    assert (p <= 0.05) == (abs(value_N.mean()) > half)


def test_many_items_give_students_interval() -> None:
    value_N = np.random.default_rng(1).normal(0.1, 1, 1500)
    half, p = bootstrap_mean(value_N, np.arange(1500))
    noise = clustered_mean(value_N, np.arange(1500))
    assert half == pytest.approx(1.96 * noise.variance**0.5, rel=0.03)
    assert standard_error(value_N, np.arange(1500)) == pytest.approx(noise.variance**0.5)
    assert p == pytest.approx(Noise(noise.variance, noise.df).p_value(noise.mean), abs=0.005)


def test_skewed_scores_give_a_wider_interval() -> None:
    half, _ = bootstrap_mean(SKEWED[:20], np.arange(20))
    assert half > 1.15 * 2.09 * standard_error(SKEWED[:20], np.arange(20))


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 1 / 100)])
def test_items_that_all_agree(value: float, p: float) -> None:
    assert bootstrap_mean(np.full(30, value), np.arange(30), resamples=99) == (0.0, p)


def test_memory_is_bounded() -> None:
    tracemalloc.start()
    studentised_means(np.random.default_rng(0).normal(0, 1, 2_000), np.arange(2_000), 2_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20
