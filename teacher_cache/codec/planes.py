"""Integers as byte planes, and many planes in one zstd frame.

All lowest bytes stand together, then all second bytes: planes that are nearly constant shrink to nothing. Each plane is
a block of its own in the frame, and so gets its own Huffman table; one frame instead of several, since every call of
the decompressor costs as much as decompressing some kilobytes.
"""

import threading
from collections.abc import Iterable

import numpy as np
import zstandard

from schemas.errors import CorruptCacheError

MOST_BYTES, MOST_RATIO = 1 << 24, 256  # of a frame's content: what is stored is noise, and only bombs shrink so well
_THREAD = threading.local()


def split_planes(values: np.ndarray, n_planes: int) -> np.ndarray:
    """Byte planes uint8 [n_planes, N], lowest byte first, of a flattened integer array (two's complement)."""
    width = values.dtype.itemsize
    wide = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, width)
    return np.ascontiguousarray(wide[:, :n_planes].T)


def compress_planes(planes: Iterable[np.ndarray], compressor: zstandard.ZstdCompressor) -> bytes:
    """One zstd frame of contiguous uint8 arrays, one after the other, each compressed on its own."""
    planes = list(planes)
    stream = compressor.compressobj(size=sum(len(plane) for plane in planes))
    parts = []
    for plane in planes:
        parts += [stream.compress(plane.data), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, stream.flush()])


def join_planes(planes: np.ndarray, width: int) -> np.ndarray:
    """Unsigned integers [N], of 1, 2 or 4 bytes, from the bytes of their ``width`` planes, 1 to 4."""
    planes_WN = planes.reshape(width, -1)
    joined_N = planes_WN[0].astype(f"u{4 if width == 3 else width}")
    for plane in range(1, width):
        joined_N |= np.left_shift(planes_WN[plane], 8 * plane, dtype=joined_N.dtype)
    return joined_N


def decompress(frame: bytes | memoryview, most: int, least: int) -> np.ndarray:
    """A frame's content, read-only uint8, of ``least`` to ``most`` bytes. Raises as ``content_size``, or if broken."""
    content_size(frame, most, least)
    try:
        return np.frombuffer(_decompressor().decompress(frame, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise CorruptCacheError(f"broken zstd frame: {error}") from None


def content_size(frame: bytes | memoryview, most: int, least: int) -> int:
    """Bytes that a frame decompresses to, from its header: before anything is allocated.

    Raises CorruptCacheError when it is broken, declares less than ``least`` bytes or more than ``most``, or a size out
    of all proportion to its own.
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
    """This thread's own: making one costs a quarter of decompressing a sample."""
    if not hasattr(_THREAD, "decompressor"):
        _THREAD.decompressor = zstandard.ZstdDecompressor()
    return _THREAD.decompressor
