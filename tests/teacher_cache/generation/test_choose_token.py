import numpy as np
import pytest

from schemas.generate_config import SamplingConfig
from teacher_cache.generation.choose_token import choose, uniform
from teacher_cache.generation.sampler import seed_of

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float64)).astype(np.float32)
N = 20_000


def shares(**settings: float) -> list[float]:
    """How often each token is drawn, with evenly spaced numbers in place of random ones."""
    sampling = SamplingConfig.model_validate(settings)
    drawn = [choose(LOGITS, sampling, (i + 0.5) / N) for i in range(N)]
    return (np.bincount(drawn, minlength=4) / N).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1e-6}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),  # 0.4 of the 0.9 that top k leaves are less than half
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_shares_are_those_of_the_distribution(settings: dict[str, float], expected: list[float]) -> None:
    np.testing.assert_allclose(shares(**settings), expected, atol=2 / N)


def test_random_numbers_are_uniform_and_functions_of_seed_and_position() -> None:
    drawn = np.array([[uniform(seed_of("ab", sample, 0), position) for position in range(200)] for sample in range(50)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.bincount((drawn.ravel() * 10).astype(int)) / drawn.size - 0.1).max() < 0.012
    assert np.array_equal(drawn[3], [uniform(seed_of("ab", 3, 0), position) for position in range(200)])
    assert len(np.unique(drawn)) == drawn.size


def test_a_seed_depends_on_prompt_sample_and_seed() -> None:
    seeds = {seed_of(key, sample, seed) for key in ("a", "b") for sample in range(3) for seed in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 1 << 63 for seed in seeds)
