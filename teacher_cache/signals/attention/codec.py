"""The ``attention`` signal as bytes: for P query rows and H heads the M largest weights and where they fall.

Sections:

- ``positions``: see ``positions``.
- ``heads``: their numbers, u16.
- ``weights``: in steps of 1/65535, rounded down, so that the stored weights and their remainder sum to 1 exactly; u16.
- ``keys``: key positions, u24.

All are split into byte planes (``planes``).
"""

import numpy as np

from schemas.cache_config import AttentionCapture, CodecConfig
from schemas.errors import CorruptCacheError
from teacher_cache.codec import positions
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.signals.attention.record import AttentionSample

STEPS = 65535
HEAD_BYTES, WEIGHT_BYTES, KEY_BYTES = 2, 2, 3


class AttentionCodec:
    """Encodes and decodes sequences of one cache. Threads may share it."""

    def __init__(self, capture: AttentionCapture, codec: CodecConfig) -> None:
        self._heads, self._keys = capture.n_heads, capture.keys
        self._level = codec.zstd_level

    def encode(self, sample: AttentionSample) -> bytes:
        """The payload of one sequence's attention member."""
        steps = np.floor(sample.weights.astype(np.float64) * STEPS).astype(np.uint16)
        return write_payload(
            [
                positions.encode_positions(sample.positions),
                split_planes(sample.heads, HEAD_BYTES),
                split_planes(steps, WEIGHT_BYTES),
                split_planes(sample.keys, KEY_BYTES),
            ],
            self._level,
        )

    def decode(self, payload: bytes, num_tokens: int) -> AttentionSample:
        """Decode one sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        limit = positions.most_bytes(num_tokens) + HEAD_BYTES * self._heads
        limit += num_tokens * self._heads * self._keys * (WEIGHT_BYTES + KEY_BYTES)
        sections = Sections(payload_frame(payload), 4, limit)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        shape = (len(positions_P), self._heads, self._keys)
        heads = sections.integers(1, (self._heads,), HEAD_BYTES)
        steps_PHM, keys_PHM = sections.integers(2, shape, WEIGHT_BYTES), sections.integers(3, shape, KEY_BYTES)
        if (keys_PHM > positions_P[:, None, None]).any():
            raise CorruptCacheError("a stored attention weight falls on a later token than its row's")
        if (steps_PHM.sum(axis=2, dtype=np.int64) > STEPS).any():
            raise CorruptCacheError("the attention weights of a row sum to more than 1")
        return AttentionSample(
            positions_P, heads.astype(np.int32), (steps_PHM / STEPS).astype(np.float32), keys_PHM.astype(np.int32)
        )
