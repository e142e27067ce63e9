import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.matrix.statistics.clustered import clustered_mean
from trainer.matrix.statistics.student_t import critical, two_sided_p
from trainer.matrix.statistics.two_levels import Noise, noise_of

ITEMS = np.arange(12)


def arm(seeds: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, 12) + rng.normal(0, 1, (seeds, 12))


def test_variances_are_the_mean_squares_of_the_crossed_model() -> None:
    score_SN = arm(4)
    mean = score_SN.mean()
    seed_square = 12 * sum((row.mean() - mean) ** 2 for row in score_SN) / 3
    item_square = 4 * sum((column.mean() - mean) ** 2 for column in score_SN.T) / 11
    rest_square = sum(
        (score_SN[s, i] - score_SN[s].mean() - score_SN[:, i].mean() + mean) ** 2 for s in range(4) for i in range(12)
    ) / (3 * 11)
    noise = noise_of([score_SN], ITEMS)
    assert noise.seeds == pytest.approx(seed_square / 48)
    assert noise.items == pytest.approx(item_square / 48)
    assert noise.rest == pytest.approx(rest_square / 48)
    assert (noise.seeds_df, noise.items_df) == (3, pytest.approx(11))
    assert noise.error**2 == pytest.approx((seed_square + item_square - rest_square) / 48)


def test_the_variance_is_right_on_average() -> None:
    """2,000 draws of 3 seeds and 12 items with variances 1, 2 and 3: 1/3 + 2/12 + 3/36."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        score_SN = rng.normal(0, 1, (3, 1)) + rng.normal(0, 2**0.5, 12) + rng.normal(0, 3**0.5, (3, 12))
        noise = noise_of([score_SN], ITEMS)
        found.append(noise.seeds + noise.items - noise.rest)
    assert np.mean(found) == pytest.approx(1 / 3 + 2 / 12 + 3 / 36, rel=0.06)


def test_in_clusters_of_equal_size_it_is_that_of_their_means() -> None:
    score_SN, cluster_N = arm(3), np.repeat(np.arange(4), 3)
    of_clusters = noise_of([score_SN.reshape(3, 4, 3).mean(axis=2)], np.arange(4))
    found = noise_of([score_SN], cluster_N)
    for name in ("items", "items_df", "seeds", "rest"):
        assert getattr(found, name) == pytest.approx(getattr(of_clusters, name)), name


def test_one_seed_knows_items_only() -> None:
    a_SN, b_SN = arm(1), arm(1, seed=1)
    noise, of_items = noise_of([a_SN, b_SN], ITEMS), clustered_mean((a_SN - b_SN)[0], ITEMS)
    assert noise == Noise(of_items.variance, of_items.df)
    assert noise.quantile(0.05) == critical(0.05, of_items.df)
    assert noise.p_value(0.3) == two_sided_p(0.3 / noise.error, of_items.df)


def test_arms_of_other_seeds_add_up_with_welchs_degrees_of_freedom() -> None:
    a_SN, b_SN = arm(3), arm(5, seed=1)
    noise = noise_of([a_SN, b_SN], ITEMS)
    parts = [rows.mean(axis=1).var(ddof=1) / len(rows) for rows in (a_SN, b_SN)]
    assert noise.seeds == pytest.approx(sum(parts))
    assert noise.seeds_df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 4))
    assert noise.items == pytest.approx((a_SN.mean(axis=0) - b_SN.mean(axis=0)).var(ddof=1) / 12)
    assert noise.rest == pytest.approx(noise_of([a_SN], ITEMS).rest + noise_of([b_SN], ITEMS).rest)


def test_a_given_model_adds_no_noise_of_seeds() -> None:
    noise = noise_of([arm(4), arm(1, seed=1)], ITEMS)
    assert (noise.seeds, noise.seeds_df) == (noise_of([arm(4)], ITEMS).seeds, 3)


noises = st.builds(
    Noise,
    items=st.floats(0.01, 10),
    items_df=st.floats(3, 1000),
    seeds=st.floats(0, 10),
    seeds_df=st.floats(2, 20),
    rest=st.floats(0, 1),
)


@given(noises, st.floats(1e-4, 0.9))
def test_p_is_where_the_quantile_ends(noise: Noise, p: float) -> None:
    assume(noise.error > 0)
    assert noise.p_value(noise.quantile(p) * noise.error) == pytest.approx(p, rel=1e-4)


@given(noises)
def test_the_quantile_lies_between_those_of_both_levels(noise: Noise) -> None:
    ends = sorted((critical(0.05, noise.seeds_df), critical(0.05, noise.items_df)))
    assert ends[0] - 1e-9 <= noise.quantile(0.05) <= ends[1] + 1e-9


@given(st.floats(0.01, 3), st.floats(0.01, 3))
def test_a_larger_difference_has_a_smaller_p(one: float, more: float) -> None:
    noise = Noise(0.02, 50, 0.03, 2, 0.01)
    assert noise.p_value(one + more) < noise.p_value(one)


def test_no_noise() -> None:
    nothing = Noise(0, math.inf)
    assert (nothing.p_value(0), nothing.p_value(0.1), nothing.quantile(0.05)) == (1, 0, pytest.approx(1.96, abs=1e-3))
    assert Noise(0, 9, seeds=1, seeds_df=2).quantile(0.05) == critical(0.05, 2)
