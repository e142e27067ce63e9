"""Arrays of one payload as sections of one zstd frame, their sizes beside it: columns ``sizes`` and ``frame``."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import Row
from teacher_cache.codec.planes import compress_planes, decompress


def compress_sections(sections: Sequence[np.ndarray], compressor: zstandard.ZstdCompressor) -> dict[str, Any]:
    """The two columns for sections of uint8 [planes, N] each; every plane is compressed on its own."""
    frame = compress_planes(itertools.chain.from_iterable(sections), compressor)
    return {"sizes": [planes.size for planes in sections], "frame": frame}


def decompress_sections(row: Row, n_sections: int, limit: int) -> tuple[np.ndarray, list[int]]:
    """The sections one after the other, read-only uint8, and their sizes.

    Raises CorruptCacheError unless there are ``n_sections``, together at most ``limit`` bytes: then nothing has been
    decompressed.
    """
    sizes = row.values("sizes").tolist()
    total = sum(sizes)
    if len(sizes) != n_sections or min(sizes) < 0 or total > limit:
        raise CorruptCacheError(f"sizes {sizes}: wanted {n_sections}, together at most {limit} bytes")
    return decompress(row.binary("frame"), total), sizes


def split_sections(row: Row, shapes: Sequence[tuple[int, ...]], widths: Sequence[int]) -> list[np.ndarray]:
    """Sections whose shapes are known, as unsigned integers of 1 to 4 bytes on disk: uint8, uint16 or uint32.

    Raises CorruptCacheError.
    """
    wanted = [math.prod(shape) * width for shape, width in zip(shapes, widths, strict=True)]
    data, sizes = decompress_sections(row, len(wanted), sum(wanted))
    if sizes != wanted:
        raise CorruptCacheError(f"sizes {sizes}: wanted {wanted}")
    ends = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return [
        _join(data[start:end], width).reshape(shape)
        for (start, end), shape, width in zip(ends, shapes, widths, strict=True)
    ]


def _join(planes: np.ndarray, width: int) -> np.ndarray:
    """Integers [N] from the bytes of their ``width`` planes."""
    whole = 4 if width == 3 else width
    bytes_NW = np.zeros((planes.size // width, whole), np.uint8)
    bytes_NW[:, :width] = planes.reshape(width, -1).T
    return bytes_NW.view(f"<u{whole}").reshape(-1)
