"""Integers as byte planes, each plane one zstd frame.

All lowest bytes stand together, then all second bytes: planes that are nearly constant shrink to nothing and each gets
its own Huffman table. A frame is only decompressed when its header declares the size that the caller expects, so that a
hostile file cannot make the reader allocate more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from schemas.errors import CorruptCacheError


def split_planes(values: np.ndarray, n_planes: int) -> np.ndarray:
    """Byte planes uint8 [n_planes, N], lowest byte first, of a flattened integer array (two's complement)."""
    width = values.dtype.itemsize
    wide = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, width)
    return np.ascontiguousarray(wide[:, :n_planes].T)


def compress_planes(planes: np.ndarray, compressor: zstandard.ZstdCompressor) -> list[bytes]:
    """One zstd frame for each row of C-contiguous uint8 [n_planes, N]."""
    return [compressor.compress(plane.data) for plane in planes]


def decompress_planes(frames: Sequence[bytes | memoryview], sizes: Sequence[int]) -> list[np.ndarray]:
    """The frames' uint8 arrays of the given ``sizes``, read-only.

    Raises CorruptCacheError when a frame is broken, or declares another size than wanted: before anything is allocated.
    """
    decompressor = zstandard.ZstdDecompressor()
    planes = []
    for frame, size in zip(frames, sizes, strict=True):
        try:
            declared = zstandard.frame_content_size(frame)
            if declared != size:
                raise CorruptCacheError(f"a zstd frame declares {declared} bytes, {size} are expected")
            planes.append(np.frombuffer(decompressor.decompress(frame), np.uint8))
        except zstandard.ZstdError as error:
            raise CorruptCacheError(f"broken zstd frame: {error}") from None
    return planes


def join_planes(planes: list[np.ndarray]) -> np.ndarray:
    """The unsigned integers [N] whose bytes are 1 to 4 ``planes``, lowest first: uint8, uint16 or uint32."""
    if len(planes) == 1:
        return planes[0]
    joined: np.ndarray[Any, np.dtype[np.unsignedinteger]]
    joined = planes[-1].astype(np.uint16 if len(planes) == 2 else np.uint32)
    for plane in reversed(planes[:-1]):
        joined *= 256
        joined += plane
    return joined
