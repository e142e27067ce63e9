"""The ``draws`` signal as bytes: P rows, T temperatures, M draws.

Per temperature and row, the distinct tokens are stored with how often each was drawn, the most frequent first; rows of
the first temperature, then those of the second, and so on. Sections:

- ``positions``: see ``positions``.
- ``counts``: distinct tokens of each row, u16.
- six of ``ids``.
- ``repeats``: how often each was drawn beyond the first time, u16.
- ``entropy``: in steps of 1/``scalar_steps_per_nat``, u24.

Integers are split into byte planes (``planes``).
"""

import numpy as np

from schemas.cache_config import CodecConfig, DrawsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec import positions
from teacher_cache.codec.ids import N_SECTIONS, decode_ids, encode_ids, most_bytes
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.records import DrawsSample

COUNT_BYTES, REPEAT_BYTES, ENTROPY_BYTES = 2, 2, 3


class DrawsCodec:
    """Encodes and decodes sequences of shards with one code table. Threads may share it."""

    def __init__(self, capture: DrawsCapture, codec: CodecConfig, table: CodeTable) -> None:
        self._n_temperatures, self._n_draws = len(capture.temperatures), capture.n
        self._steps_per_nat = codec.scalar_steps_per_nat
        self._level = codec.zstd_level
        self._table = table

    def encode(self, sample: DrawsSample) -> bytes:
        """The payload of one sequence's draws member."""
        ids_RM = sample.ids.transpose(1, 0, 2).reshape(-1, self._n_draws)
        ids_E, repeats_E, counts_R = _distinct(ids_RM)
        steps_TP = np.rint(sample.entropy.T.astype(np.float64) * self._steps_per_nat)
        steps_TP = steps_TP.clip(0, (1 << 8 * ENTROPY_BYTES) - 1).astype(np.uint32)
        return write_payload(
            [
                positions.encode_positions(sample.positions),
                split_planes(counts_R, COUNT_BYTES),
                *encode_ids(ids_E, counts_R, self._table),
                split_planes(repeats_E, REPEAT_BYTES),
                split_planes(steps_TP, ENTROPY_BYTES),
            ],
            self._level,
        )

    def decode(self, payload: bytes, num_tokens: int) -> DrawsSample:
        """Decode one sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row_bytes = COUNT_BYTES + most_bytes(self._n_draws, self._table) + REPEAT_BYTES * self._n_draws + ENTROPY_BYTES
        limit = positions.most_bytes(num_tokens) + num_tokens * self._n_temperatures * row_bytes
        sections = Sections(payload_frame(payload), 4 + N_SECTIONS, limit)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        n_rows = self._n_temperatures * len(positions_P)
        counts_R = sections.integers(1, (n_rows,), COUNT_BYTES).astype(np.int32)
        if ((counts_R < 1) | (counts_R > self._n_draws)).any():
            raise CorruptCacheError(f"a row of {counts_R.max()} distinct draws, wanted 1 to {self._n_draws}")
        ids_RM = np.empty((n_rows, self._n_draws), np.int32)
        decode_ids(sections, 2, self._table, np.arange(n_rows, dtype=np.int32), counts_R, ids_RM)
        times_E = 1 + sections.integers(2 + N_SECTIONS, (int(counts_R.sum()),), REPEAT_BYTES).astype(np.int64)
        first_R = np.cumsum(counts_R) - counts_R
        if n_rows and (np.add.reduceat(times_E, first_R) != self._n_draws).any():
            raise CorruptCacheError(f"the draws of a row are not {self._n_draws}")
        ids_E = ids_RM[np.arange(self._n_draws) < counts_R[:, None]]
        shape = (self._n_temperatures, len(positions_P), self._n_draws)
        ids_PTM = np.ascontiguousarray(np.repeat(ids_E, times_E).reshape(shape).transpose(1, 0, 2))
        steps_TP = sections.integers(3 + N_SECTIONS, shape[:2], ENTROPY_BYTES)
        entropy_PT = np.ascontiguousarray((steps_TP / self._steps_per_nat).astype(np.float32).T)
        return DrawsSample(positions_P, ids_PTM, entropy_PT)


def _distinct(ids_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct ids int32 [E] of all rows, the most frequent of a row first; their repeats [E]; ids a row [R]."""
    n_rows, n_draws = ids_RM.shape
    sorted_N = np.sort(ids_RM, axis=1).reshape(-1)
    starts_N = np.ones(len(sorted_N), bool)
    starts_N[1:] = sorted_N[1:] != sorted_N[:-1]
    starts_N[::n_draws] = True
    start_E = np.flatnonzero(starts_N)
    times_E = np.diff(start_E, append=len(sorted_N))
    row_E = start_E // n_draws
    order_E = np.lexsort((-times_E, row_E))
    counts_R = np.bincount(row_E, minlength=n_rows).astype(np.int32)
    return sorted_N[start_E[order_E]], times_E[order_E] - 1, counts_R
