"""Falling log-probabilities of rows as bytes: rounded to steps, and stored as differences along the row.

Most differences are tiny: four go in a byte, two bits each, lowest first, and every row starts a new byte. Four
sections hold P rows:

- ``differences``, three sections: the bytes of places 0-7, 8-23 and from 24 on, each row by row.
- ``excesses``: two bits hold at most 3, which means that the next of these is to be added. u8, or u16 if one needs it;
  row by row.

Where they are kept as floats, the first section holds their bits, row by row, and the others nothing.
"""

import itertools
from typing import Literal

import numpy as np

from schemas.cache_config import CodecConfig
from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.ids import GROUPS, index
from teacher_cache.codec.planes import split_planes

PACKED = 4  # differences in a byte
LARGE = 3  # the value that stands for this difference and all larger ones
MAX_STEPS = 65535  # lower log-probabilities are clipped
BYTE_GROUPS = (GROUPS[0] // PACKED, GROUPS[1] // PACKED)
N_SECTIONS = 4
FLOAT_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
FloatDtype = Literal["bfloat16", "float16", "float32"]


def encode_logprobs(logprobs_PK: np.ndarray, counts_P: np.ndarray, codec: CodecConfig) -> list[np.ndarray]:
    """The four sections, each uint8 [planes, N].

    Args:
        logprobs_PK: float32, at most 0 and falling; what stands beyond a row's count is not looked at.
        counts_P: int32, entries of each row.

    Raises ValueError for other values.
    """
    differences_PK = _differences(logprobs_PK, counts_P, codec.logprob_steps_per_nat)
    if codec.logprobs != "steps":
        stored_E = logprobs_PK[np.arange(logprobs_PK.shape[1]) < counts_P[:, None]]
        bits_E = to_bits(np.minimum(stored_E, 0), codec.logprobs)  # one can be above 0 by a rounding error
        nothing = np.empty((0, 0), np.uint8)
        return [split_planes(bits_E, bits_E.itemsize), nothing, nothing, nothing]
    packed_PB = _pack(differences_PK)
    stored_PB = np.arange(packed_PB.shape[1]) < -(-counts_P[:, None] // PACKED)
    edges = [0, *BYTE_GROUPS, packed_PB.shape[1]]
    excesses = differences_PK[differences_PK >= LARGE] - LARGE
    return [
        *(packed_PB[:, a:b][stored_PB[:, a:b]][None] for a, b in itertools.pairwise(edges)),
        split_planes(excesses, 1 if excesses.max(initial=0) < 256 else 2),
    ]


def most_bytes(k: int, codec: CodecConfig) -> int:
    """What a row of ``k`` log-probabilities may take in the sections, at most."""
    return -(-k // PACKED) + 2 * k if codec.logprobs == "steps" else FLOAT_BYTES[codec.logprobs] * k


def to_bits(values: np.ndarray, dtype: FloatDtype) -> np.ndarray:
    """float32 values as the bits of ``dtype``, u16 or u32; rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(dtype).view(np.uint32 if dtype == "float32" else np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(bits: np.ndarray, dtype: FloatDtype) -> np.ndarray:
    """float32 values from the bits of ``dtype``."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(dtype).astype(np.float32)


def quantise(values: np.ndarray, steps_per_nat: int, limit: int) -> np.ndarray:
    """``values`` (nats; may be infinite) as int32 numbers of steps, clipped to ±``limit``. Raises ValueError on NaN."""
    steps = np.multiply(values, steps_per_nat, dtype=np.float64)
    if np.isnan(steps).any():
        raise ValueError("NaN among the values to be stored")
    np.rint(steps, out=steps)
    return np.clip(steps, -limit, limit, out=steps).astype(np.int32)


def _differences(logprobs_PK: np.ndarray, counts_P: np.ndarray, steps_per_nat: int) -> np.ndarray:
    """The entries' differences along their rows, int32 [P, K]; 0 for those that are not stored."""
    stored_PK = np.arange(logprobs_PK.shape[1]) < counts_P[:, None]
    steps_PK = quantise(np.where(stored_PK, -logprobs_PK, 0), steps_per_nat, MAX_STEPS)
    differences_PK = np.where(stored_PK, np.diff(steps_PK, axis=1, prepend=np.int32(0)), 0)
    if differences_PK.min(initial=0) < 0:
        raise ValueError("log-probabilities must fall along each row and not exceed 0")
    return differences_PK


def _pack(differences_PK: np.ndarray) -> np.ndarray:
    """Four differences a byte, capped at LARGE: uint8 [P, B]."""
    n_rows, k = differences_PK.shape
    capped_PK = np.zeros((n_rows, -(-k // PACKED) * PACKED), np.uint8)
    capped_PK[:, :k] = np.minimum(differences_PK, LARGE)
    capped_PB4 = capped_PK.reshape(n_rows, capped_PK.shape[1] // PACKED, PACKED)
    return np.bitwise_or.reduce(capped_PB4 << np.arange(0, 2 * PACKED, 2, dtype=np.uint8), axis=2)


@compiled
def fill_logprobs(
    content: np.ndarray,
    starts: np.ndarray,
    nats_per_step: np.float32,
    rows_P: np.ndarray,
    counts_P: np.ndarray,
    logprobs_SK: np.ndarray,
) -> None:
    """Decode P rows into rows ``rows_P`` of ``logprobs_SK``, with -inf beyond a row's count.

    Arguments, errors and safety are those of ``fill_ids``; ``logprobs_SK`` is float32.
    """
    n_rows, k_max = len(counts_P), logprobs_SK.shape[1]
    group_0, group_1 = content[starts[0] : starts[1]], content[starts[1] : starts[2]]
    group_2 = content[starts[2] : starts[3]]
    n_large = _count_large(content[starts[0] : starts[3]])
    excesses = _join_excesses(content[starts[3] : starts[4]], n_large)
    packed_B = np.empty(-(-k_max // PACKED), np.uint8)
    at_0, at_1, at_2, large = 0, 0, 0, index(0)
    for p in range(n_rows):
        count = int(counts_P[p])
        n_bytes = (count + (PACKED - 1)) // PACKED
        n_0, n_1 = min(n_bytes, BYTE_GROUPS[0]), min(n_bytes, BYTE_GROUPS[1])
        if at_0 + n_0 > len(group_0) or at_1 + n_1 - n_0 > len(group_1) or at_2 + n_bytes - n_1 > len(group_2):
            raise ValueError("differences before row", p, n_rows)
        for b in range(index(n_0)):
            packed_B[b] = group_0[index(at_0) + b]
        for b in range(index(n_1 - n_0)):
            packed_B[index(n_0) + b] = group_1[index(at_1) + b]
        for b in range(index(n_bytes - n_1)):
            packed_B[index(n_1) + b] = group_2[index(at_2) + b]
        at_0, at_1, at_2 = at_0 + n_0, at_1 + n_1 - n_0, at_2 + n_bytes - n_1
        logprobs_K = logprobs_SK[rows_P[p]]
        steps = np.uint16(0)
        whole = index(count // PACKED)  # bytes; apart from the rest, so that the inner loop is unrolled
        for b in range(whole):
            byte = packed_B[b]
            for place in range(PACKED):
                steps, large = _next_steps(steps, large, byte, place, excesses)
                logprobs_K[index(PACKED) * b + index(place)] = -np.float32(steps) * nats_per_step
        for place in range(count % PACKED):
            steps, large = _next_steps(steps, large, packed_B[whole], place, excesses)
            logprobs_K[index(PACKED) * whole + index(place)] = -np.float32(steps) * nats_per_step
        logprobs_K[count:] = -np.inf
    if at_0 != len(group_0) or at_1 != len(group_1) or at_2 != len(group_2):
        raise ValueError("bytes of differences", starts[3] - starts[0], at_0 + at_1 + at_2)


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
def _next_steps(
    steps: np.uint16, large: np.uint64, byte: np.uint8, place: int, excesses: np.ndarray
) -> tuple[np.uint16, np.uint64]:
    """The running sum and the number of large differences, with one more difference."""
    difference = (byte >> np.uint8(2 * place)) & np.uint8(LARGE)
    is_large = index(difference == LARGE)  # a factor: a branch would be mispredicted too often
    return steps + np.uint16(difference) + excesses[large] * np.uint16(is_large), large + is_large
