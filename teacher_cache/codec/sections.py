"""Arrays as sections of one zstd frame.

The frame's content is a table of the sections' sizes in bytes (u32 each), followed by the sections. Integer arrays are
stored as byte planes (see ``planes``). The payload of a captured signal is an Arrow row with such a frame as its only
column.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import zstandard

from schemas.arrow import SIGNAL_SCHEMA
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import RowReader, is_arrow, write_binary
from teacher_cache.codec.planes import compress_planes, content_size, decompress, join_planes

SIZE_BYTES = 4
FEW_BYTES = 4096  # up to this size one block may be smaller than a block (with a header) per plane
_READER = RowReader(SIGNAL_SCHEMA)


def compress_sections(sections: Sequence[np.ndarray], level: int) -> bytes:
    """Compress sections, uint8 [planes, N] each, into a frame: a block per plane, or one block if small."""
    sizes = np.array([planes.size for planes in sections], "<u4").view(np.uint8)
    planes = [sizes, *itertools.chain.from_iterable(sections)]
    apart = compress_planes(planes, level)
    if sum(len(plane) for plane in planes) > FEW_BYTES:
        return apart
    together = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(b"".join(planes))
    return min(apart, together, key=len)


def write_payload(sections: Sequence[np.ndarray], level: int) -> bytes:
    """Payload of a captured signal from its sections."""
    return write_binary(SIGNAL_SCHEMA, compress_sections(sections, level))


def payload_frame(payload: bytes) -> memoryview:
    """Frame in the payload of a captured signal, a whole member or a record. Raises CorruptCacheError."""
    return _READER.read(payload).binary("frame") if is_arrow(payload) else memoryview(payload)


class Frame(NamedTuple):
    """A zstd frame and its declared decompressed size."""

    data: memoryview
    content_bytes: int

    @staticmethod
    def of(data: memoryview, n_sections: int, limit: int) -> "Frame":
        """Check that a frame declares a size possible for ``n_sections`` of at most ``limit`` bytes in total.

        Raises CorruptCacheError otherwise.
        """
        header = SIZE_BYTES * n_sections
        return Frame(data, content_size(data, most=header + limit, least=header))


NO_FRAME = Frame(memoryview(b""), 0)


class Sections:
    """Sections of a frame: section i is ``content[starts[i] : starts[i + 1]]``."""

    def __init__(self, frame: bytes | memoryview, n_sections: int, limit: int) -> None:
        """Decompress a frame.

        Raises CorruptCacheError unless it holds ``n_sections`` of at most ``limit`` bytes in total. A frame that
        declares more is not decompressed.
        """
        header = SIZE_BYTES * n_sections
        self.content = decompress(frame, most=header + limit, least=header)  # uint8, read-only
        sizes = struct.unpack_from(f"<{n_sections}I", self.content.data)
        self.starts = np.array([*itertools.accumulate(sizes, initial=header)], np.int64)
        if self.starts[-1] != len(self.content):
            raise CorruptCacheError(f"sections end at {self.starts[-1]} of {len(self.content)} bytes")

    def __getitem__(self, section: int) -> np.ndarray:
        """Bytes of a section, uint8."""
        return self.content[self.starts[section] : self.starts[section + 1]]

    def integers(self, section: int, shape: tuple[int, ...], width: int) -> np.ndarray:
        """Section as unsigned integers of ``width`` (1 to 4) bytes on disk: uint8, uint16 or uint32.

        Raises CorruptCacheError if its size differs.
        """
        planes = self[section]
        if len(planes) != math.prod(shape) * width:
            raise CorruptCacheError(f"section {section}: {len(planes)} bytes, wanted {width} for each of {shape}")
        return join_planes(planes, width).reshape(shape)
