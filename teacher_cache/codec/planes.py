"""Integers as byte planes, and many planes in one zstd frame.

All lowest bytes come first, then all second bytes: nearly constant planes compress to almost nothing. Each plane is a
block of its own in the frame, with its own Huffman table. All planes share one frame, since each call of the
decompressor costs as much as decompressing several kilobytes.
"""

import threading
from collections.abc import Sequence

import numpy as np
import zstandard

from schemas.errors import CorruptCacheError
from teacher_cache.codec.zstd import compress_blocks

MOST_BYTES, MOST_RATIO = 1 << 24, 256  # of a frame's content: only a decompression bomb has a higher ratio
_THREAD = threading.local()


def split_planes(values: np.ndarray, n_planes: int) -> np.ndarray:
    """Split a flattened integer array (two's complement) into byte planes uint8 [n_planes, N], lowest byte first."""
    width = values.dtype.itemsize
    wide = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, width)
    return np.ascontiguousarray(wide[:, :n_planes].T)


def compress_planes(planes: Sequence[np.ndarray], level: int) -> bytes:
    """Compress uint8 arrays into one zstd frame, each as a block of its own."""
    ends = np.cumsum([len(plane) for plane in planes], dtype=np.int64)
    return compress_blocks(np.concatenate([np.empty(0, np.uint8), *planes]), ends, level)


def join_planes(planes: np.ndarray, width: int) -> np.ndarray:
    """Join ``width`` (1 to 4) byte planes into unsigned integers [N] of 1, 2 or 4 bytes."""
    planes_WN = planes.reshape(width, -1)
    joined_N = planes_WN[0].astype(f"u{4 if width == 3 else width}")
    for plane in range(1, width):
        joined_N |= np.left_shift(planes_WN[plane], 8 * plane, dtype=joined_N.dtype)
    return joined_N


def decompress(frame: bytes | memoryview, most: int, least: int) -> np.ndarray:
    """Decompress a frame of ``least`` to ``most`` bytes to read-only uint8. Raises CorruptCacheError."""
    content_size(frame, most, least)
    try:
        return np.frombuffer(_decompressor().decompress(frame, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise CorruptCacheError(f"broken zstd frame: {error}") from None


def content_size(frame: bytes | memoryview, most: int, least: int) -> int:
    """Read a frame's decompressed size in bytes from its header, before anything is allocated.

    Raises CorruptCacheError if the header is broken or declares fewer than ``least`` bytes, more than ``most``, or more
    than MOST_RATIO times the frame's own size (where that exceeds MOST_BYTES).
    """
    most = min(most, max(MOST_BYTES, MOST_RATIO * len(frame)))
    try:
        declared = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise CorruptCacheError(f"broken zstd frame: {error}") from None
    if not least <= declared <= most:
        raise CorruptCacheError(f"a zstd frame declares {declared} bytes, wanted {least} to {most}")
    return declared


def _decompressor() -> zstandard.ZstdDecompressor:
    """Decompressor of this thread: creating one takes a quarter of the time of decompressing a sample."""
    if not hasattr(_THREAD, "decompressor"):
        _THREAD.decompressor = zstandard.ZstdDecompressor()
    return _THREAD.decompressor
