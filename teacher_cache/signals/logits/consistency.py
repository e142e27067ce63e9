"""Check stored rows against the tokens at their positions: find what no teacher's distribution can satisfy.

The realised next token ties a row to its text: if it is among the row's entries, its log-probability is stored twice;
if not, it is at most that of the last entry. So rows that are shifted, or swapped between samples, contradict their
tokens, whatever the teacher. Used both to verify a cache and to check batches in training.

Shape letters as in ``teacher_cache.records``; N rows of any samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from schemas.cache_config import CodecConfig
from schemas.manifest import Manifest
from teacher_cache.codec.logprobs import MAX_STEPS
from teacher_cache.records import LogitsSample, RowBatch, TokenSample
from teacher_cache.signals.logits.codec import MAX_SCALAR_STEPS

ARITHMETIC = 1e-4  # nats; error of float32 arithmetic before quantisation
RELATIVE_ERROR = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 0.0}
LOWEST = {"bfloat16": -1e38, "float16": -65000.0, "float32": -1e38}
NO_TOKEN = -1
NOT_ITS_ENTRY = "the realised token's log-probability is not that of its entry"
LIKELIER = "the realised token is likelier than stored entries but is not among them"
OF_ANOTHER_TOKEN = (NOT_ITS_ENTRY, LIKELIER)  # found in rows at the wrong token


class Rows(NamedTuple):
    """Stored rows and the token that follows each."""

    next_ids_N: np.ndarray  # int64; NO_TOKEN if none follows
    counts_N: np.ndarray  # integer; number of entries in each row, at least 1
    ids_NK: np.ndarray
    logprobs_NK: np.ndarray  # -inf beyond counts
    next_logprob_N: np.ndarray
    log_partition_NT: np.ndarray


def rows_of_sample(tokens: TokenSample, logits: LogitsSample) -> Rows:
    """All stored rows of one sample."""
    most = int(logits.counts.max(initial=1))  # drops columns without entries
    following_S = np.append(tokens.input_ids[1:].astype(np.int64), NO_TOKEN)
    return Rows(
        following_S[logits.positions],
        logits.counts,
        logits.ids[:, :most],
        logits.logprobs[:, :most],
        logits.next_logprob,
        logits.log_partition,
    )


def rows_of_batch(batch: RowBatch, row: int) -> Rows:
    """Stored rows in the loss mask of one batch row."""
    here_L = batch.loss_mask[row] & (batch.logprobs[row, :, 0] > -np.inf)
    logprobs_NK = batch.logprobs[row][here_L]
    return Rows(
        np.roll(batch.input_ids[row], -1)[here_L],
        np.isfinite(logprobs_NK).sum(axis=1),
        batch.ids[row][here_L],
        logprobs_NK,
        batch.next_logprob[row][here_L],
        batch.log_partition[row][here_L],
    )


def contradictions(rows: Rows, manifest: Manifest) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each kind of contradiction that occurs, with a mask of its rows, bool [N]."""
    for what, wrong_N in _found(rows, manifest):
        if wrong_N.any():
            yield what, wrong_N


def _found(rows: Rows, manifest: Manifest) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each kind of contradiction with a mask of its rows, also if the mask is empty."""
    stored_NK = np.isfinite(rows.logprobs_NK)
    logprobs_NK = rows.logprobs_NK.astype(np.float64)
    error_NK, scalar = errors_of(logprobs_NK, manifest)
    at_least_NK = np.where(logprobs_NK > _lowest(manifest.codec), logprobs_NK - error_NK, -np.inf)
    yield "a token id occurs twice", _twice(rows, stored_NK)
    with np.errstate(invalid="ignore"):
        yield (
            "log-probabilities are not in descending order",
            ((np.diff(logprobs_NK, axis=1) > 0) & stored_NK[:, 1:]).any(axis=1),
        )
    yield "probabilities sum to more than 1", np.exp(at_least_NK).sum(axis=1) > 1
    yield from _of_next_token(rows, logprobs_NK, error_NK, scalar, _floor(manifest.codec))
    last_N1 = np.maximum(rows.counts_N[:, None] - 1, 0)
    outside_N = manifest.teacher.vocab_size - rows.counts_N
    for column, temperature in enumerate(manifest.capture.logits.temperatures):
        partition_N1 = rows.log_partition_NT[:, [column]].astype(np.float64)
        least_N = np.exp(at_least_NK / temperature - partition_N1 - scalar).sum(axis=1)
        at_most_NK = np.exp((logprobs_NK + error_NK) / temperature - partition_N1 + scalar)
        most_N = at_most_NK.sum(axis=1) + outside_N * np.take_along_axis(at_most_NK, last_N1, axis=1)[:, 0]
        wrong_N = (least_N > 1) | (most_N < 1)
        yield f"the log-partition at temperature {temperature:g} contradicts the stored entries", wrong_N


def of_another_token(rows: Rows, manifest: Manifest) -> np.ndarray:
    """Mask of rows that contradict their next token, bool [N]."""
    logprobs_NK = rows.logprobs_NK.astype(np.float64)
    found = _of_next_token(rows, logprobs_NK, *errors_of(logprobs_NK, manifest), _floor(manifest.codec))
    return np.logical_or.reduce([wrong_N for _, wrong_N in found])


def _of_next_token(
    rows: Rows, logprobs_NK: np.ndarray, error_NK: np.ndarray, scalar: float, floor: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Compare both stored log-probabilities of the realised token. Values below ``floor`` (nats) were clipped."""
    follows_N = rows.next_ids_N != NO_TOKEN
    realised_N = np.maximum(np.where(follows_N, rows.next_logprob_N, -np.inf).astype(np.float64), floor)
    yield "the realised token has a probability above 1", realised_N > scalar
    found_NK = (rows.ids_NK == rows.next_ids_N[:, None]) & np.isfinite(logprobs_NK) & follows_N[:, None]
    found_N = found_NK.any(axis=1)
    at_N1 = np.where(found_N, found_NK.argmax(axis=1), np.maximum(rows.counts_N - 1, 0))[:, None]
    entry_N = np.maximum(np.take_along_axis(logprobs_NK, at_N1, axis=1)[:, 0], floor)
    slack_N = np.take_along_axis(error_NK, at_N1, axis=1)[:, 0] + scalar
    yield NOT_ITS_ENTRY, found_N & (np.abs(realised_N - entry_N) > slack_N)
    yield LIKELIER, follows_N & ~found_N & (realised_N > entry_N + slack_N)


def _twice(rows: Rows, stored_NK: np.ndarray) -> np.ndarray:
    ordered_NK = np.sort(np.where(stored_NK, rows.ids_NK, -1 - np.arange(rows.ids_NK.shape[1])), axis=1)
    return (np.diff(ordered_NK, axis=1) == 0).any(axis=1)


def errors_of(logprobs_NK: np.ndarray, manifest: Manifest) -> tuple[np.ndarray, float]:
    """Error bounds (nats) of log-probabilities and scalars. Imported and repacked caches were rounded twice."""
    roundings = 1 if manifest.derived is None else 2
    return (
        roundings * logprob_errors(logprobs_NK, manifest.codec) + ARITHMETIC,
        roundings * 0.5 / manifest.codec.scalar_steps_per_nat + ARITHMETIC,
    )


def logprob_errors(logprobs_NK: np.ndarray, codec: CodecConfig) -> np.ndarray:
    """Error bound (nats) of each stored log-probability after one rounding; 0 where none is stored."""
    stored_NK = np.isfinite(logprobs_NK)
    if codec.logprobs == "steps":
        return np.where(stored_NK, 0.5 / codec.logprob_steps_per_nat, 0.0)
    return np.where(stored_NK, -logprobs_NK, 0.0).astype(np.float64) * RELATIVE_ERROR[codec.logprobs]


def _lowest(codec: CodecConfig) -> float:
    """Lowest log-probability of an entry that can be stored; lower ones are clipped to it."""
    return -(MAX_STEPS / codec.logprob_steps_per_nat - 6) if codec.logprobs == "steps" else LOWEST[codec.logprobs]


def _floor(codec: CodecConfig) -> float:
    """Lowest log-probability that both entries and scalars can store."""
    return max(_lowest(codec), -MAX_SCALAR_STEPS / codec.scalar_steps_per_nat)
