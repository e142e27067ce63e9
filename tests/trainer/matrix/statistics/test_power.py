import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.statistics.inference import Inference, difference
from trainer.matrix.statistics.power import detectable, finds, items_needed, seeds_needed, with_items
from trainer.matrix.statistics.two_levels import Noise

Z975, Z80 = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)


def inference(value: float, noise: Noise) -> Inference:
    half = noise.quantile(0.05) * noise.error
    return Inference(value, value - half, value + half, noise.p_value(value), noise, "items", "")


def test_the_detectable_difference_of_many_items_is_2_8_standard_errors() -> None:
    found = inference(0.1, Noise(0.04, math.inf))
    assert detectable(found) == pytest.approx((Z975 + Z80) * 0.2)


def test_the_articles_difference_on_its_benchmarks() -> None:
    """2.3 points, 25 % of items discordant: z as planned for MMLU, and for HumanEval (one sample each)."""
    for items, z in ((14_042, 5.5), (164, 0.6)):
        noise = Noise((0.25 - 0.023**2) / items, math.inf)
        assert 0.023 / noise.error == pytest.approx(z, abs=0.06)
    assert items_needed(inference(0.023, noise), 164) == pytest.approx(0.25 * ((Z975 + Z80) / 0.023) ** 2, rel=0.01)


@given(st.floats(0.02, 1), st.integers(10, 5000), st.integers(1, 100))
def test_items_needed_are_the_fewest_that_suffice(value: float, items: int, tests: int) -> None:
    found = inference(value, Noise(1 / items, items - 1))
    n = items_needed(found, items, tests)
    assert n is not None
    assert finds(with_items(found.noise, n / items), value, tests)
    assert n == 2 or not finds(with_items(found.noise, (n - 1) / items), value, tests)


@given(st.floats(0.001, 0.3), st.integers(1, 300), st.sampled_from([2, 5, 40, math.inf]))
def test_what_was_not_found_needs_more_items(value: float, tests: int, df: float) -> None:
    """Even if its own p is below 5 % and only Holm's is not, or if it has few clusters."""
    found = inference(value, Noise(0.001, df))
    if found.p * tests > 0.05:
        assert items_needed(found, 1000, tests) > 1000


def test_seeds_needed_are_the_fewest_that_suffice() -> None:
    noise = Noise(0.0001, 500, seeds=0.01, seeds_df=2, rest=0.00005)
    found = inference(0.15, noise)
    n = seeds_needed(found, 3)
    assert n is not None

    def of(seeds: int) -> Noise:
        return Noise(noise.of_items, math.inf, 0.03 / seeds, float(seeds - 1))

    assert finds(of(n), 0.15, 1)
    assert not finds(of(n - 1), 0.15, 1)
    assert seeds_needed(found, 3, tests=50) > n


def test_no_number_of_items_makes_up_for_noisy_seeds_and_the_reverse() -> None:
    noisy_seeds = inference(0.01, Noise(0.0001, 500, seeds=0.01, seeds_df=2, rest=0.00005))
    assert items_needed(noisy_seeds, 200) is None
    assert seeds_needed(noisy_seeds, 3) is None  # the items' noise is too large as well
    noisy_items = inference(0.1, Noise(0.01, 500, seeds=0.0001, seeds_df=2, rest=0.0001))
    assert seeds_needed(noisy_items, 3) is None
    assert items_needed(noisy_items, 200) > 200


def test_nothing_is_needed_without_a_difference() -> None:
    found = inference(0.0, Noise(0.01, 500, seeds=0.0001, seeds_df=2))
    assert (items_needed(found, 200), seeds_needed(found, 3)) == (None, None)
    assert seeds_needed(inference(0.1, Noise(0.01, 500)), 1) is None


def test_the_detectable_difference_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(0)
    noise_N = [rng.normal(0, 1, (2, 1, 100)) for _ in range(400)]
    size = np.median([detectable(difference(a, b, np.arange(100), False, 199)) for a, b in noise_N[:50]])
    found = [difference(a + size, b, np.arange(100), False, 199).p <= 0.05 for a, b in noise_N]
    assert 0.7 < np.mean(found) < 0.88
