"""The ``draws`` signal as bytes: P rows, T temperatures, M draws.

- ``codes``: each drawn token's code (see ``permutation``), sorted within its row, as differences: u16, or u24 for
  vocabularies above 65,536; temperature by temperature. A token drawn again is a 0.
- ``entropy``: in steps of 1/``scalar_steps_per_nat``, u24; temperature by temperature.

Both are split into byte planes (``planes``).
"""

import numpy as np
import zstandard

from schemas.arrow import DRAWS_SCHEMA
from schemas.cache_config import CodecConfig, DrawsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import RowReader, write_row
from teacher_cache.codec.permutation import TWO_PLANES, invert_code_table
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.positions import check_positions
from teacher_cache.codec.sections import compress_sections, split_sections
from teacher_cache.records import DrawsSample

ENTROPY_BYTES = 3

_READER = RowReader(DRAWS_SCHEMA)


class DrawsCodec:
    """Encodes and decodes sequences of shards with one code table. Threads may share it."""

    def __init__(self, capture: DrawsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        """``table``: uint32 [V], ids in code order."""
        self._n_temperatures, self._n_draws = len(capture.temperatures), capture.n
        self._steps_per_nat = codec.scalar_steps_per_nat
        self._level = codec.zstd_level
        self._table = table.astype(np.int32)
        self._code_of_id = invert_code_table(table)
        self._code_bytes = 2 if len(table) <= TWO_PLANES else 3

    def encode(self, sample: DrawsSample) -> bytes:
        """The payload of one sequence's draws member."""
        codes_TPM = np.sort(self._code_of_id[sample.ids.transpose(1, 0, 2)], axis=2)
        differences_TPM = np.diff(codes_TPM, axis=2, prepend=np.int32(0))
        steps_TP = np.rint(sample.entropy.T.astype(np.float64) * self._steps_per_nat)
        steps_TP = steps_TP.clip(0, (1 << 8 * ENTROPY_BYTES) - 1).astype(np.uint32)
        sections = [split_planes(differences_TPM, self._code_bytes), split_planes(steps_TP, ENTROPY_BYTES)]
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=False)
        return write_row(DRAWS_SCHEMA, {"positions": sample.positions, **compress_sections(sections, compressor)})

    def decode(self, payload: bytes, num_tokens: int) -> DrawsSample:
        """Decode one sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row = _READER.read(payload)
        positions = check_positions(row.values("positions"), num_tokens)
        shape = (self._n_temperatures, len(positions), self._n_draws)
        differences_TPM, steps_TP = split_sections(row, [shape, shape[:2]], [self._code_bytes, ENTROPY_BYTES])
        codes_TPM = differences_TPM.cumsum(axis=2, dtype=np.int64)
        largest = int(codes_TPM.max(initial=0))
        if largest >= len(self._table):
            raise CorruptCacheError(f"largest code of the draws: {largest}, wanted {len(self._table) - 1}")
        ids_PTM = np.ascontiguousarray(self._table[codes_TPM].transpose(1, 0, 2))
        entropy_PT = np.ascontiguousarray((steps_TP / self._steps_per_nat).astype(np.float32).T)
        return DrawsSample(positions, ids_PTM, entropy_PT)
