"""The ``hidden`` and ``final`` signals as bytes: P rows of C layers of D channels.

Sections: positions, then one per array of the record, in byte planes. Compression saves only a tenth: quantised values
are close to noise.
"""

import math

import numpy as np

from schemas.cache_config import CodecConfig, Quantised
from teacher_cache.codec import positions
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.signals.hidden.record import HiddenSample


def hidden_shapes(capture: Quantised, channels: int) -> tuple[int, int, int]:
    """Number of stored values (two ``int4`` channels share one), scales and outliers per row and layer."""
    n_values = channels // 2 if capture.dtype == "int4" else channels
    if not capture.has_scales:
        return n_values, 0, 0
    return n_values, -(-channels // capture.channels_per_scale), -(-channels // capture.channels_per_outlier)


class HiddenCodec:
    """Encodes and decodes the samples of one cache. Thread-safe."""

    def __init__(self, capture: Quantised, codec: CodecConfig, layers: int, channels: int) -> None:
        """``layers``: number of stored layers; ``channels``: hidden size of the teacher."""
        n_values, n_scales, n_outliers = hidden_shapes(capture, channels)
        self._row_shapes = [(layers, n) for n in (n_values, n_scales, n_outliers, n_outliers)]
        self._widths = [1 if capture.has_scales else 2, 2, 2, 2]
        self._level = codec.zstd_level

    def encode(self, sample: HiddenSample) -> bytes:
        """Encode the payload of one sequence."""
        arrays = (sample.values, sample.scales, sample.outlier_index, sample.outliers)
        planes = [split_planes(array, array.dtype.itemsize) for array in arrays]
        return write_payload([positions.encode_positions(sample.positions), *planes], self._level)

    def empty(self) -> HiddenSample:
        """Record without rows."""
        shapes = zip(self._row_shapes, self._widths, strict=True)
        return HiddenSample(np.empty(0, np.int32), *(np.empty((0, *shape), f"i{width}") for shape, width in shapes))

    def decode(self, payload: bytes, num_tokens: int) -> HiddenSample:
        """Decode the payload of a sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row_bytes = sum(math.prod(shape) * width for shape, width in zip(self._row_shapes, self._widths, strict=True))
        limit = positions.most_bytes(num_tokens) + num_tokens * row_bytes
        sections = Sections(payload_frame(payload), 1 + len(self._widths), limit)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        arrays = [
            sections.integers(section, (len(positions_P), *shape), width)
            for section, (shape, width) in enumerate(zip(self._row_shapes, self._widths, strict=True), start=1)
        ]
        return HiddenSample(positions_P, *(array.view(f"i{array.itemsize}") for array in arrays))
