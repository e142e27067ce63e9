"""The ``hidden`` and ``final`` signals as bytes: P rows of C layers of D channels, one section an array.

Each array is split into byte planes (``planes``). Compression takes off a tenth: quantised values are close to noise.
"""

import zstandard

from schemas.arrow import HIDDEN_SCHEMA
from schemas.cache_config import CodecConfig, Quantised
from teacher_cache.codec.message import RowReader, write_row
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.positions import check_positions
from teacher_cache.codec.sections import compress_sections, split_sections
from teacher_cache.records import HiddenSample

_READER = RowReader(HIDDEN_SCHEMA)


def hidden_shapes(capture: Quantised, channels: int) -> tuple[int, int]:
    """Scales and outliers of one row of one layer: (0, 0) unless the dtype is int8."""
    if capture.dtype != "int8":
        return 0, 0
    return -(-channels // capture.channels_per_scale), -(-channels // capture.channels_per_outlier)


class HiddenCodec:
    """Encodes and decodes sequences of one cache. Threads may share it."""

    def __init__(self, capture: Quantised, codec: CodecConfig, layers: int, channels: int) -> None:
        """``layers``: how many are stored; ``channels``: the teacher's hidden size."""
        n_scales, n_outliers = hidden_shapes(capture, channels)
        self._row_shapes = [(layers, channels), (layers, n_scales), (layers, n_outliers), (layers, n_outliers)]
        self._widths = [1 if capture.dtype == "int8" else 2, 2, 2, 2]
        self._level = codec.zstd_level

    def encode(self, sample: HiddenSample) -> bytes:
        """The payload of one sequence's member."""
        arrays = (sample.values, sample.scales, sample.outlier_index, sample.outliers)
        planes = [split_planes(array, array.dtype.itemsize) for array in arrays]
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=False)
        return write_row(HIDDEN_SCHEMA, {"positions": sample.positions, **compress_sections(planes, compressor)})

    def decode(self, payload: bytes, num_tokens: int) -> HiddenSample:
        """Decode one sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        row = _READER.read(payload)
        positions = check_positions(row.values("positions"), num_tokens)
        shapes = [(len(positions), *shape) for shape in self._row_shapes]
        arrays = split_sections(row, shapes, self._widths)
        return HiddenSample(positions, *(array.view(f"i{array.itemsize}") for array in arrays))
