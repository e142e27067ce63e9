"""The ``draws`` signal as bytes: P rows, T temperatures, M draws.

Each row stores, per temperature, its distinct tokens and how often each was drawn, most frequent first: all rows of the
first temperature, then those of the second, and so on. Sections:

- ``positions``: see ``positions``.
- ``repeats``: for each token of a row drawn more than once, the number of draws less 1; then a 0, unless no draws are
  left. All other tokens were drawn once, so their number is what is left of M. u16.
- six of ``ids``: distinct tokens of each row.
- ``entropy``: in steps of 1/``scalar_steps_per_nat``, u24.

Integers are split into byte planes (``planes``).
"""

import numpy as np

from schemas.cache_config import CodecConfig, DrawsCapture
from teacher_cache.codec import positions
from teacher_cache.codec.compiled import compiled, refused_as_corrupt
from teacher_cache.codec.ids import N_SECTIONS, decode_ids, encode_ids, most_bytes
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.signals.draws.record import DrawsSample

REPEAT_BYTES, ENTROPY_BYTES = 2, 3
IDS = 2  # index of the first section of ids


class DrawsCodec:
    """Encodes and decodes the samples of shards with one code table. Thread-safe."""

    def __init__(self, capture: DrawsCapture, codec: CodecConfig, table: CodeTable) -> None:
        self._n_temperatures, self._n_draws = len(capture.temperatures), capture.n
        self._steps_per_nat = codec.scalar_steps_per_nat
        self._level = codec.zstd_level
        self._table = table

    def encode(self, sample: DrawsSample) -> bytes:
        """Encode the payload of one sequence."""
        ids_RM = sample.ids.transpose(1, 0, 2).reshape(-1, self._n_draws)
        ids_E, counts_R, repeats = _distinct(np.ascontiguousarray(ids_RM, np.int32))
        steps_TP = np.rint(sample.entropy.T.astype(np.float64) * self._steps_per_nat)
        steps_TP = steps_TP.clip(0, (1 << 8 * ENTROPY_BYTES) - 1).astype(np.uint32)
        return write_payload(
            [
                positions.encode_positions(sample.positions),
                split_planes(repeats, REPEAT_BYTES),
                *encode_ids(ids_E, counts_R, self._table),
                split_planes(steps_TP, ENTROPY_BYTES),
            ],
            self._level,
        )

    def decode(self, payload: bytes, num_tokens: int) -> DrawsSample:
        """Decode the payload of a sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row_bytes = most_bytes(self._n_draws, self._table) + REPEAT_BYTES * self._n_draws + ENTROPY_BYTES
        limit = positions.most_bytes(num_tokens) + num_tokens * self._n_temperatures * row_bytes
        sections = Sections(payload_frame(payload), IDS + N_SECTIONS + 1, limit)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        n_rows = self._n_temperatures * len(positions_P)
        repeats = sections.integers(1, (len(sections[1]) // REPEAT_BYTES,), REPEAT_BYTES)
        with refused_as_corrupt():
            times_E, counts_R = _all_times(repeats, n_rows, self._n_draws)
        ids_RM = np.empty((n_rows, self._n_draws), np.int32)
        decode_ids(sections, IDS, self._table, np.arange(n_rows, dtype=np.int32), counts_R, ids_RM)
        ids_E = ids_RM[np.arange(self._n_draws) < counts_R[:, None]]
        shape = (self._n_temperatures, len(positions_P), self._n_draws)
        ids_PTM = np.ascontiguousarray(np.repeat(ids_E, times_E).reshape(shape).transpose(1, 0, 2))
        steps_TP = sections.integers(IDS + N_SECTIONS, shape[:2], ENTROPY_BYTES)
        entropy_PT = np.ascontiguousarray((steps_TP / self._steps_per_nat).astype(np.float32).T)
        return DrawsSample(positions_P, ids_PTM, entropy_PT)


@compiled
def _distinct(ids_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct ids of each row, most frequent first, int32 [E], ids per row, int32 [R], and ``repeats``, uint16."""
    n_rows, n_draws = ids_RM.shape
    ids_E, n_ids = np.empty(n_rows * n_draws, np.int32), 0
    repeats, n_repeats = np.empty(n_rows * n_draws, np.uint16), 0
    counts_R = np.empty(n_rows, np.int32)
    ids, times = np.empty(n_draws, np.int32), np.empty(n_draws, np.int32)  # of a row, ascending ids
    for r in range(n_rows):
        n, most = 0, 0
        for token in np.sort(ids_RM[r]):
            if n > 0 and ids[n - 1] == token:
                times[n - 1] += 1
            else:
                ids[n], times[n] = token, 1
                n += 1
            most = max(most, times[n - 1])
        while most > 0:  # few values occur: they sum to n_draws
            following = 0
            for i in range(n):
                if times[i] == most:
                    ids_E[n_ids] = ids[i]
                    n_ids += 1
                    if most > 1:
                        repeats[n_repeats] = most - 1
                        n_repeats += 1
                elif times[i] < most:
                    following = max(following, times[i])
            if most == 1:  # all others were drawn once
                repeats[n_repeats] = 0
                n_repeats += 1
            most = following
        counts_R[r] = n
    return ids_E[:n_ids], counts_R, repeats[:n_repeats]


@compiled
def _all_times(repeats: np.ndarray, n_rows: int, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Times that each distinct token was drawn, int32 [E], and distinct tokens per row, int32 [R].

    Raises ValueError(what, value seen, value wanted) if a row does not have ``n_draws`` draws.
    """
    times_E, n_entries = np.empty(n_rows * n_draws, np.int32), 0
    counts_R = np.empty(n_rows, np.int32)
    at = 0
    for r in range(n_rows):
        left, count = n_draws, 0
        while left > 0:
            if at == len(repeats):
                raise ValueError("rows with repeats", r, n_rows)
            times = int(repeats[at]) + 1
            at += 1
            ones = left if times == 1 else 1
            if times > left:
                raise ValueError("draws of a row", n_draws - left + times, n_draws)
            for _ in range(ones):
                times_E[n_entries] = times
                n_entries += 1
            count += ones
            left -= ones * times
        counts_R[r] = count
    n_read = np.int64(at)  # a variable assigned once: numba raises with the first value of others
    if n_read != len(repeats):
        raise ValueError("repeats", len(repeats), n_read)
    return times_E[:n_entries], counts_R
