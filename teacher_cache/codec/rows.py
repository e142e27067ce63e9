"""Compiled loop that decodes the sections of a sequence's ``logits`` into padded rows, without the GIL."""

from typing import NamedTuple

import numpy as np

from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.ids import N_SECTIONS as ID_SECTIONS
from teacher_cache.codec.ids import fill_ids
from teacher_cache.codec.logprobs import N_SECTIONS as LOGPROB_SECTIONS
from teacher_cache.codec.logprobs import fill_float_logprobs, fill_logprobs
from teacher_cache.codec.positions import row_numbers

COUNT_BYTES, SCALAR_BYTES = 2, 3
IDS = 2  # index of the first section of ids
LOGPROBS = IDS + ID_SECTIONS
SCALARS = LOGPROBS + LOGPROB_SECTIONS
N_SECTIONS = SCALARS + 1


class Layout(NamedTuple):
    """Decoding parameters that all sequences share."""

    id_of_code: np.ndarray  # int32 [V]
    code_bytes: int
    unit_column: int  # column of temperature 1 of the log-partition, which is not stored
    steps_per_nat: int  # of log-probabilities; 0 for floats
    float_form: int  # dtype of floats, as an index into FLOATS
    nats_per_scalar_step: np.float32


class Rows(NamedTuple):
    """Output arrays of one sequence: C-contiguous, or views of batch arrays. All entries are written.

    Rows that are not stored get a count of 0, a realised log-probability of NaN and log-partitions of 0.
    """

    counts: np.ndarray  # int32 [S]
    ids: np.ndarray  # int32 [S, K]; 0 beyond a row's count
    logprobs: np.ndarray  # float32 [S, K]; -inf beyond a row's count
    next_logprob: np.ndarray  # float32 [S]; NaN in the last row
    log_partition: np.ndarray  # float32 [S, T]


@compiled
def fill_rows(content: np.ndarray, starts: np.ndarray, layout: Layout, rows: Rows) -> None:
    """Decode the sections of ``content`` (see ``fill_ids``) into ``rows``.

    Raises ValueError(what, value seen, value wanted) if the sections are inconsistent. Never accesses memory outside
    the arrays, whatever the sections hold.
    """
    rows_P = row_numbers(content[starts[0] : starts[1]], len(rows.counts))
    counts_P = _counts(content[starts[1] : starts[2]], len(rows_P), rows.ids.shape[1])
    clear_rows(rows_P, rows)
    for p in range(len(rows_P)):
        rows.counts[rows_P[p]] = counts_P[p]
    fill_ids(content, starts[IDS : LOGPROBS + 1], layout.id_of_code, layout.code_bytes, rows_P, counts_P, rows.ids)
    logprob_starts = starts[LOGPROBS : SCALARS + 1]
    if layout.steps_per_nat > 0:
        fill_logprobs(content, logprob_starts, layout.steps_per_nat, rows_P, counts_P, rows.logprobs)
    else:
        fill_float_logprobs(content, logprob_starts, layout.float_form, rows_P, counts_P, rows.logprobs)
    planes = content[starts[SCALARS] : starts[SCALARS + 1]]
    _fill_scalars(
        planes, layout.nats_per_scalar_step, rows_P, layout.unit_column, rows.next_logprob, rows.log_partition
    )


@compiled
def _counts(planes: np.ndarray, n_rows: int, k_max: int) -> np.ndarray:
    """Number of entries in each row, int32 [P]; ``k_max`` for all rows if there are no planes."""
    counts_P = np.full(n_rows, k_max, np.int32)
    if len(planes) == 0:
        return counts_P
    if len(planes) != COUNT_BYTES * n_rows:
        raise ValueError("bytes of counts", len(planes), COUNT_BYTES * n_rows)
    for p in range(n_rows):
        counts_P[p] = np.int32(planes[p]) | np.int32(planes[n_rows + p]) << 8
        if counts_P[p] < 1 or counts_P[p] > k_max:
            raise ValueError("one of the counts", np.int64(counts_P[p]), k_max)
    return counts_P


@compiled
def clear_rows(rows_P: np.ndarray, rows: Rows) -> None:
    """Fill the rows that are not stored."""
    n_tokens = len(rows.counts)
    p = 0
    for s in range(n_tokens if len(rows_P) < n_tokens else 0):
        if p < len(rows_P) and rows_P[p] == s:
            p += 1
            continue
        rows.counts[s] = 0
        rows.ids[s] = 0
        rows.logprobs[s] = -np.inf
        rows.next_logprob[s] = np.nan
        rows.log_partition[s] = 0


@compiled
def _fill_scalars(
    planes: np.ndarray,
    nats_per_step: np.float32,
    rows_P: np.ndarray,
    unit_column: int,
    next_logprob_S: np.ndarray,
    log_partition_ST: np.ndarray,
) -> None:
    """Decode the realised log-probabilities and the log-partitions."""
    n_rows, n_columns = len(rows_P), log_partition_ST.shape[1]  # stored: realised token, temperatures other than 1
    n = n_columns * n_rows
    if len(planes) != SCALAR_BYTES * n:
        raise ValueError("bytes of scalars", len(planes), SCALAR_BYTES * n)
    for column in range(n_columns):
        place = column - 1 if column <= unit_column else column
        for p in range(n_rows):
            i = column * n_rows + p
            top = np.uint32(planes[i]) << 8 | np.uint32(planes[n + i]) << 16 | np.uint32(planes[2 * n + i]) << 24
            steps = np.int32(top) >> 8  # keeps the sign
            if column == 0:
                next_logprob_S[rows_P[p]] = -np.float32(steps) * nats_per_step
            else:
                log_partition_ST[rows_P[p], place] = np.float32(steps) * nats_per_step
    for p in range(n_rows):
        log_partition_ST[rows_P[p], unit_column] = 0
    if n_rows > 0 and rows_P[n_rows - 1] == len(next_logprob_S) - 1:
        next_logprob_S[len(next_logprob_S) - 1] = np.nan
