"""The ``attention`` signal as bytes: the M largest weights and their keys, for P query rows and H attention heads.

Sections:

- ``positions``: see ``positions``.
- ``heads``: numbers of the attention heads, u16.
- ``weights``: in steps of 1/65535, rounded down, so that a row never sums to more than 1; u16.
- ``keys``: key positions, u24.

Integers are split into byte planes (``planes``).
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
    """Encodes and decodes the samples of one cache. Thread-safe."""

    def __init__(self, capture: AttentionCapture, codec: CodecConfig) -> None:
        self._heads, self._keys = capture.n_heads, capture.keys
        self._level = codec.zstd_level

    def encode(self, sample: AttentionSample) -> bytes:
        """Encode the payload of one sequence."""
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
        """Decode the payload of a sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        limit = positions.most_bytes(num_tokens) + HEAD_BYTES * self._heads
        limit += num_tokens * self._heads * self._keys * (WEIGHT_BYTES + KEY_BYTES)
        sections = Sections(payload_frame(payload), 4, limit)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        shape = (len(positions_P), self._heads, self._keys)
        heads = sections.integers(1, (self._heads,), HEAD_BYTES)
        steps_PHM, keys_PHM = sections.integers(2, shape, WEIGHT_BYTES), sections.integers(3, shape, KEY_BYTES)
        if (keys_PHM > positions_P[:, None, None]).any():
            raise CorruptCacheError("an attention row has a key after its own position")
        if (steps_PHM.sum(axis=2, dtype=np.int64) > STEPS).any():
            raise CorruptCacheError("the attention weights of a row sum to more than 1")
        return AttentionSample(
            positions_P, heads.astype(np.int32), (steps_PHM / STEPS).astype(np.float32), keys_PHM.astype(np.int32)
        )
