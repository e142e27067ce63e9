"""The ``attention`` signal as bytes: for P query rows and H heads the M largest weights and where they fall.

- ``weights``: in steps of 1/65535, rounded down, so that the stored weights and their remainder sum to 1 exactly; u16.
- ``keys``: key positions, u24.

Both are split into byte planes (``planes``).
"""

import numpy as np
import zstandard

from schemas.arrow import ATTENTION_SCHEMA
from schemas.cache_config import AttentionCapture, CodecConfig
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import RowReader, write_row
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.positions import check_positions
from teacher_cache.codec.sections import compress_sections, split_sections
from teacher_cache.records import AttentionSample

STEPS = 65535
KEY_BYTES = 3

_READER = RowReader(ATTENTION_SCHEMA)


class AttentionCodec:
    """Encodes and decodes sequences of one cache. Threads may share it."""

    def __init__(self, capture: AttentionCapture, codec: CodecConfig) -> None:
        self._heads, self._keys = capture.n_heads, capture.keys
        self._level = codec.zstd_level

    def encode(self, sample: AttentionSample) -> bytes:
        """The payload of one sequence's attention member."""
        steps = np.floor(sample.weights.astype(np.float64) * STEPS).astype(np.uint16)
        sections = [split_planes(steps, 2), split_planes(sample.keys, KEY_BYTES)]
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=False)
        columns = {"positions": sample.positions, "heads": sample.heads}
        return write_row(ATTENTION_SCHEMA, {**columns, **compress_sections(sections, compressor)})

    def decode(self, payload: bytes, num_tokens: int) -> AttentionSample:
        """Decode one sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row = _READER.read(payload)
        positions = check_positions(row.values("positions"), num_tokens)
        heads = row.values("heads")
        if len(heads) != self._heads or (len(heads) and heads.max() >= 1 << 16):
            raise CorruptCacheError(f"column heads holds {heads.tolist()}, wanted {self._heads} head numbers")
        shape = (len(positions), self._heads, self._keys)
        steps_PHM, keys_PHM = split_sections(row, [shape, shape], [2, KEY_BYTES])
        if (keys_PHM > positions[:, None, None]).any():
            raise CorruptCacheError("a stored attention weight falls on a later token than its row's")
        if (steps_PHM.sum(axis=2, dtype=np.int64) > STEPS).any():
            raise CorruptCacheError("the attention weights of a row sum to more than 1")
        return AttentionSample(
            positions, heads.astype(np.int32), (steps_PHM / STEPS).astype(np.float32), keys_PHM.astype(np.int32)
        )
