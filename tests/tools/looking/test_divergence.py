"""KL over the common partition, against loops over its cells and over the whole vocabulary."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig, LogitsCapture
from support.synthetic import logits_sample
from teacher_cache.records import LogitsSample
from tools.looking.divergence import divergences, mass_error

FLOATS = CodecConfig(logprobs="float32")


def rows_of(logits_PV: np.ndarray, k: int) -> LogitsSample:
    """Kept in float64: float32 cannot resolve a small remaining mass to the compared digits."""
    n_rows = len(logits_PV)
    padded_SV = np.concatenate([logits_PV, logits_PV[:1]])
    sample = logits_sample(padded_SV, np.zeros(n_rows + 1, np.uint32), LogitsCapture(k=k))
    logprobs_PV = logits_PV - np.logaddexp.reduce(logits_PV, axis=1, keepdims=True)
    exact_PK = np.take_along_axis(logprobs_PV, sample.ids.astype(np.int64), axis=1)
    return replace(sample, logprobs=np.where(np.isfinite(sample.logprobs), exact_PK, -np.inf))


def probabilities(logits_PV: np.ndarray) -> np.ndarray:
    p_PV = np.exp(logits_PV - logits_PV.max(axis=1, keepdims=True))
    return p_PV / p_PV.sum(axis=1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 3))
def test_against_cells_and_the_whole(seed: int, vocabulary: int, k_a: int, k_b: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    k_a, k_b = min(k_a, vocabulary), min(k_b, vocabulary)
    logits_a, logits_b = rng.normal(0, spread, (2, 3, vocabulary))
    p_PV, q_PV = probabilities(logits_a), probabilities(logits_b)
    found = divergences(rows_of(logits_a, k_a), rows_of(logits_b, k_b), FLOATS, FLOATS)
    for row, (p, q) in enumerate(zip(p_PV, q_PV, strict=True)):
        both = sorted(set(np.argsort(-p)[:k_a].tolist()) & set(np.argsort(-q)[:k_b].tolist()))
        others = [v for v in range(vocabulary) if v not in both]
        cells_p, cells_q = p[both], q[both]
        if others:
            cells_p, cells_q = np.append(cells_p, p[others].sum()), np.append(cells_q, q[others].sum())
        np.testing.assert_allclose(found.a_b_P[row], kl(cells_p, cells_q), atol=1e-5)
        np.testing.assert_allclose(found.b_a_P[row], kl(cells_q, cells_p), atol=1e-5)
        np.testing.assert_allclose(found.shared_a_P[row], p[both].sum(), atol=1e-5)
        np.testing.assert_allclose(found.shared_b_P[row], q[both].sum(), atol=1e-5)
        assert found.a_b_P[row] <= kl(p, q) + 1e-5
        assert found.b_a_P[row] <= kl(q, p) + 1e-5
        if k_a == k_b == vocabulary:
            np.testing.assert_allclose(found.a_b_P[row], kl(p, q), atol=1e-5)


def test_equal_distributions_have_divergence_zero() -> None:
    rows = rows_of(np.random.default_rng(0).normal(0, 3, (20, 50)), 8)
    found = divergences(rows, rows, CodecConfig(), CodecConfig())
    assert found.a_b_P.max() == found.b_a_P.max() == 0


def test_without_shared_entries_the_bound_is_zero() -> None:
    low, high = np.zeros((1, 10)), np.zeros((1, 10))
    low[0, :2], high[0, 8:] = [6, 5], [6, 5]
    found = divergences(rows_of(low, 2), rows_of(high, 2), FLOATS, FLOATS)
    assert found.a_b_P[0] == found.shared_a_P[0] == 0


def test_mass_lost_to_rounding_is_not_treated_as_zero() -> None:
    """One teacher is certain, its only entry rounded up to 1: the other tokens keep a positive mass."""
    sure = LogitsSample(
        num_tokens=2,
        positions=np.array([0], np.int32),
        counts=np.array([1], np.int32),
        ids=np.array([[7]], np.int32),
        logprobs=np.zeros((1, 1), np.float32),
        next_logprob=np.zeros(1, np.float32),
        log_partition=np.zeros((1, 1), np.float32),
    )
    less = rows_of(np.log(np.array([[0.01 / 9] * 7 + [0.99] + [0.01 / 9] * 2])), 1)
    codec = CodecConfig()
    np.testing.assert_allclose(mass_error(sure, codec), 1 / 512)
    found = divergences(less, sure, codec, codec)
    assert 0 < found.a_b_P[0] < 0.99 * np.log(0.99) + 0.01 * np.log(0.01 * 512) + 0.002


def test_probabilities_too_small_for_floats() -> None:
    logits = np.zeros((1, 4))
    logits[0, 0] = 2000
    rows = rows_of(logits, 4)
    assert np.isfinite(divergences(rows, rows_of(np.zeros((1, 4)), 4), FLOATS, FLOATS)).all()
