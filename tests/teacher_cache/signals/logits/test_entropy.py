import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import LogitsCapture
from support.synthetic import logits_sample
from teacher_cache.signals.logits.entropy import bucket_entropy

VOCABULARY = 50


def row_entropies(k: int, scale: float, seed: int, policy: str = "top_k") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computed, by the definition from the same top k, and of the whole rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (6, VOCABULARY))
    capture = LogitsCapture(k=k, policy=policy, mass=0.8, positions="all")
    sample = logits_sample(logits, np.zeros(6, np.uint32), capture)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = []
    for row, count in zip(p, sample.counts, strict=True):
        kept = np.sort(row)[::-1][:count]
        rest = np.sort(row)[::-1][count:].sum()
        expected.append(-sum(x * np.log(x) for x in (*kept, rest) if x > 0))
    whole = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    return bucket_entropy(sample), np.array(expected), whole


@given(
    k=st.integers(1, VOCABULARY),
    scale=st.floats(0, 30),
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(["top_k", "nucleus"]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_entropy_of_the_entries_and_one_bucket(k: int, scale: float, seed: int, policy: str) -> None:
    computed, expected, whole = row_entropies(k, scale, seed, policy)
    assert computed.dtype == np.float64
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5)
    assert (computed >= -1e-6).all()
    assert (computed <= whole + 2e-5).all()


def test_it_is_exact_if_all_tokens_are_stored() -> None:
    computed, _, whole = row_entropies(VOCABULARY, 2.0, 0)
    np.testing.assert_allclose(computed, whole, atol=2e-5)


def test_it_is_strictly_smaller_when_several_entries_share_the_bucket() -> None:
    computed, _, whole = row_entropies(3, 1.0, 0)
    assert (computed < whole - 0.1).all()


def test_entropy_of_two_equal_entries_and_of_a_certain_one() -> None:
    logits = np.array([[0.0, 0.0, -np.inf, -np.inf], [0.0, -np.inf, -np.inf, -np.inf]])
    sample = logits_sample(logits, np.zeros(2, np.uint32), LogitsCapture(k=4, positions="all"))
    assert bucket_entropy(sample) == pytest.approx([np.log(2), 0], abs=1e-6)
