"""Kullback-Leibler divergence between two teachers' stored distributions.

Only some entries of each distribution are stored, so both are coarsened to the same partition of the vocabulary: one
cell per token that both store, and one cell for all others. Coarsening never increases a KL divergence (data processing
inequality; Cover and Thomas, Elements of Information Theory, 2.7.1), so the result is a lower bound of the true
divergence, up to the rounding of the stored values.
"""

from typing import NamedTuple

import numpy as np

from schemas.cache_config import CodecConfig
from teacher_cache.records import LogitsSample


class Divergences(NamedTuple):
    """KL divergences and shared mass of P rows."""

    a_b_P: np.ndarray  # KL(a ‖ b), nats
    b_a_P: np.ndarray  # KL(b ‖ a), nats
    shared_a_P: np.ndarray  # probability, under a, of the tokens that both store
    shared_b_P: np.ndarray


def divergences(a: LogitsSample, b: LogitsSample, codec_a: CodecConfig, codec_b: CodecConfig) -> Divergences:
    """KL in both directions; ``a`` and ``b`` must have the same ``positions``.

    The mass of the other tokens is that of a teacher's entries that are not shared, plus its missing mass. It is known
    only up to the rounding of the stored values, and floored at that error.
    """
    n_rows = len(a.positions)
    row_a_N, place_a_N, row_b_N, place_b_N = _shared(a, b)
    log_a_N = a.logprobs[row_a_N, place_a_N].astype(np.float64)
    log_b_N = b.logprobs[row_b_N, place_b_N].astype(np.float64)
    shared_a_P = np.bincount(row_a_N, np.exp(log_a_N), minlength=n_rows)
    shared_b_P = np.bincount(row_b_N, np.exp(log_b_N), minlength=n_rows)
    rest_a_P, rest_b_P = _rest(a, shared_a_P, codec_a), _rest(b, shared_b_P, codec_b)
    total_a_P, total_b_P = shared_a_P + rest_a_P, shared_b_P + rest_b_P  # 1, but for rounding
    log_a_N, log_b_N = log_a_N - np.log(total_a_P)[row_a_N], log_b_N - np.log(total_b_P)[row_b_N]
    rest_a_P, rest_b_P = rest_a_P / total_a_P, rest_b_P / total_b_P

    ratio_N, ratio_rest_P = log_a_N - log_b_N, np.log(rest_a_P / rest_b_P)
    a_b_P = np.bincount(row_a_N, np.exp(log_a_N) * ratio_N, minlength=n_rows) + rest_a_P * ratio_rest_P
    b_a_P = np.bincount(row_b_N, -np.exp(log_b_N) * ratio_N, minlength=n_rows) - rest_b_P * ratio_rest_P
    return Divergences(np.maximum(a_b_P, 0), np.maximum(b_a_P, 0), shared_a_P / total_a_P, shared_b_P / total_b_P)


def _shared(a: LogitsSample, b: LogitsSample) -> tuple[np.ndarray, ...]:
    """Row and column indices, in ``a`` and in ``b``, of the N entries that both store."""
    row_a, place_a = np.nonzero(np.isfinite(a.logprobs))
    row_b, place_b = np.nonzero(np.isfinite(b.logprobs))
    id_a, id_b = a.ids[row_a, place_a].astype(np.int64), b.ids[row_b, place_b].astype(np.int64)
    width = 1 + max(id_a.max(initial=0), id_b.max(initial=0))
    _, in_a, in_b = np.intersect1d(row_a * width + id_a, row_b * width + id_b, return_indices=True)
    return row_a[in_a], place_a[in_a], row_b[in_b], place_b[in_b]


def _rest(logits: LogitsSample, shared_P: np.ndarray, codec: CodecConfig) -> np.ndarray:
    """Mass of the tokens that are not shared [P], floored at the rounding error."""
    probabilities_PK = np.exp(logits.logprobs.astype(np.float64))
    stored_P = probabilities_PK.sum(axis=1)
    rest_P = np.maximum(stored_P - shared_P, 0) + np.maximum(1 - stored_P, 0)
    return np.maximum(rest_P, mass_error(logits, codec))


def mass_error(logits: LogitsSample, codec: CodecConfig) -> np.ndarray:
    """Error bound of each row's sum of stored probabilities [P]: half a quantisation step per entry."""
    finite_PK = np.where(np.isfinite(logits.logprobs), logits.logprobs, 0).astype(np.float64)
    probabilities_PK = np.exp(logits.logprobs.astype(np.float64))
    if codec.logprobs == "steps":
        finer_PK = np.where(finite_PK > -0.25, 16, np.where(finite_PK > -1, 4, 1))
        half_step_PK = 0.5 / codec.logprob_steps_per_nat / finer_PK
    else:
        half_step_PK = -finite_PK * {"bfloat16": 2**-9, "float16": 2**-12, "float32": 2**-25}[codec.logprobs]
    return np.maximum((probabilities_PK * half_step_PK).sum(axis=1), 1e-9)
