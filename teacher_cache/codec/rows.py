"""The loops that turn a sequence's decompressed sections into padded rows; compiled, and outside Python's lock.

Several times faster than the numpy passes they replace, which hold the lock for most of their time. Nothing outside the
arrays is read or written, whatever the sections hold.
"""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import numba
import numpy as np

PACKED = 4  # differences in a byte, the first in its lowest two bits
LARGE = 3  # the value that stands for this difference and all larger ones


index = np.uint64  # for the hot loops: numba tests signed indices for being negative, half as much work again
P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile when first called, a few seconds' work; the result is kept on disk where there is a folder for it."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(nogil=True, error_model="numpy")(function)


class Sizes(NamedTuple):
    """Bytes of each section of one sequence. ``codec/logits.py`` says what they hold."""

    counts: int  # 2 * S, or 0: all rows have K entries
    ids: int  # P * E, P planes of the codes of E entries
    logprobs: int  # the sum of each row's count / PACKED, rounded up
    excesses: int  # X or 2 * X, for X differences that are LARGE
    scalars: int  # 4 * (1 + T) * S


class Rows(NamedTuple):
    """Where one sequence is decoded to: C-contiguous arrays, or views into batch arrays. All entries are written."""

    counts: np.ndarray  # int32 [S]
    ids: np.ndarray  # int32 [S, K]; 0 beyond a row's count
    logprobs: np.ndarray  # float32 [S, K]; -inf beyond a row's count
    next_logprob: np.ndarray  # float32 [S]; NaN in the last row
    log_partition: np.ndarray  # float32 [S, T]


@compiled
def fill_rows(
    sections: np.ndarray,
    sizes: Sizes,
    ids_by_code: np.ndarray,
    id_planes: int,
    nats_per_step: np.float32,
    nats_per_scalar_step: np.float32,
    rows: Rows,
) -> None:
    """Decode uint8 [sum(sizes)], the sections one after the other, into ``rows``; ``ids_by_code`` is int32 [V].

    Raises ValueError(what, value seen, value wanted) when the sections do not fit together.
    """
    ids_start = sizes.counts
    logprobs_start = ids_start + sizes.ids
    excesses_start = logprobs_start + sizes.logprobs
    scalars_start = excesses_start + sizes.excesses
    _fill_counts(sections[:ids_start], rows.ids.shape[1], rows.counts)
    n_entries = rows.counts.sum()
    if sizes.ids != id_planes * n_entries:
        raise ValueError("bytes of ids", sizes.ids, id_planes * n_entries)
    id_section = sections[ids_start:logprobs_start]
    if id_planes == 2:
        _fill_ids(_codes_of_two_planes(id_section), ids_by_code, rows.counts, rows.ids)
    else:
        _fill_ids(_codes_of_three_planes(id_section), ids_by_code, rows.counts, rows.ids)
    n_packed = ((rows.counts + (PACKED - 1)) // PACKED).sum()
    if sizes.logprobs != n_packed:
        raise ValueError("bytes of logprobs", sizes.logprobs, n_packed)
    packed = sections[logprobs_start:excesses_start]
    excesses = _join_excesses(sections[excesses_start:scalars_start], _count_large(packed))
    _fill_logprobs(packed, excesses, nats_per_step, rows.counts, rows.logprobs)
    _fill_scalars(sections[scalars_start:], nats_per_scalar_step, rows.next_logprob, rows.log_partition)


@compiled
def _fill_counts(planes: np.ndarray, k_max: int, counts_S: np.ndarray) -> None:
    n_rows = len(counts_S)
    if len(planes) == 0:
        counts_S[:] = k_max
        return
    if len(planes) != 2 * n_rows:
        raise ValueError("bytes of counts", len(planes), 2 * n_rows)
    for s in range(n_rows):
        counts_S[s] = np.int32(planes[s]) | np.int32(planes[n_rows + s]) << 8
        if counts_S[s] < 1 or counts_S[s] > k_max:
            raise ValueError("one of the counts", counts_S[s], k_max)


@compiled
def _codes_of_two_planes(planes: np.ndarray) -> np.ndarray:
    n = len(planes) // 2
    codes = np.empty(n, np.uint16)
    for i in range(n):
        codes[i] = np.uint16(planes[i]) | np.uint16(planes[n + i]) << 8
    return codes


@compiled
def _codes_of_three_planes(planes: np.ndarray) -> np.ndarray:
    n = len(planes) // 3
    codes = np.empty(n, np.uint32)
    for i in range(n):
        codes[i] = np.uint32(planes[i]) | np.uint32(planes[n + i]) << 8 | np.uint32(planes[2 * n + i]) << 16
    return codes


@compiled
def _fill_ids(codes: np.ndarray, ids_by_code: np.ndarray, counts_S: np.ndarray, ids_SK: np.ndarray) -> None:
    largest = np.uint32(0)
    start = index(0)
    for s in range(len(counts_S)):
        ids_K, count = ids_SK[s], counts_S[s]
        for k in range(index(count)):
            code = codes[start + k]
            largest = max(largest, np.uint32(code))
            ids_K[k] = ids_by_code[min(index(code), index(len(ids_by_code) - 1))]
        start += index(count)
        ids_K[count:] = 0
    seen = np.int64(largest)  # numba raises with the first value of a variable that has several
    if seen >= len(ids_by_code):
        raise ValueError("largest code of the ids", seen, len(ids_by_code) - 1)


@compiled
def _count_large(packed: np.ndarray) -> int:
    large = 0
    for byte in packed:
        for place in range(PACKED):
            large += ((byte >> (2 * place)) & 3) == LARGE
    return large


@compiled
def _join_excesses(planes: np.ndarray, n: int) -> np.ndarray:
    """uint16 [n + 1]; the last is looked at, and multiplied by 0, after the last large difference."""
    if len(planes) != n and len(planes) != 2 * n:
        raise ValueError("bytes of excesses", len(planes), n)
    excesses = np.zeros(n + 1, np.uint16)
    for i in range(n):
        excesses[i] = planes[i]
    for i in range(n, len(planes)):
        excesses[i - n] |= np.uint16(planes[i]) << 8
    return excesses


@compiled
def _fill_logprobs(
    packed: np.ndarray, excesses: np.ndarray, nats_per_step: np.float32, counts_S: np.ndarray, logprobs_SK: np.ndarray
) -> None:
    large = index(0)
    start = index(0)
    for s in range(len(counts_S)):
        logprobs_K, count = logprobs_SK[s], counts_S[s]
        steps = np.uint16(0)
        whole = index(count // PACKED)  # bytes; apart from the rest, so that the inner loop is unrolled
        for b in range(whole):
            byte = packed[start + b]
            for place in range(PACKED):
                steps, large = _next_steps(steps, large, byte, place, excesses)
                logprobs_K[index(PACKED) * b + index(place)] = -np.float32(steps) * nats_per_step
        for place in range(count % PACKED):
            steps, large = _next_steps(steps, large, packed[start + whole], place, excesses)
            logprobs_K[index(PACKED) * whole + index(place)] = -np.float32(steps) * nats_per_step
        start += index((count + (PACKED - 1)) // PACKED)
        logprobs_K[count:] = -np.inf


@compiled
def _next_steps(
    steps: np.uint16, large: np.uint64, byte: np.uint8, place: int, excesses: np.ndarray
) -> tuple[np.uint16, np.uint64]:
    """The running sum (modulo 2^16) and the number of large differences, with one more difference."""
    difference = (byte >> np.uint8(2 * place)) & np.uint8(LARGE)
    is_large = index(difference == LARGE)  # a factor: a branch would be mispredicted too often
    return steps + np.uint16(difference) + excesses[large] * np.uint16(is_large), large + is_large


@compiled
def _fill_scalars(
    planes: np.ndarray, nats_per_step: np.float32, next_logprob_S: np.ndarray, log_partition_ST: np.ndarray
) -> None:
    n_rows, n_temperatures = log_partition_ST.shape
    n = (1 + n_temperatures) * n_rows
    if len(planes) != 4 * n:
        raise ValueError("bytes of scalars", len(planes), 4 * n)
    for column in range(1 + n_temperatures):
        for s in range(n_rows):
            i = column * n_rows + s
            low = np.uint32(planes[i]) | np.uint32(planes[n + i]) << 8
            steps = np.int32(low | np.uint32(planes[2 * n + i]) << 16 | np.uint32(planes[3 * n + i]) << 24)
            if column == 0:
                next_logprob_S[s] = np.float32(steps) * nats_per_step
            else:
                log_partition_ST[s, column - 1] = np.float32(steps) * nats_per_step
    next_logprob_S[n_rows - 1] = np.nan
