"""Decompress gzip, bzip2, xz and zstd files as byte streams, including concatenated frames.

One small loop over the four decompressors instead of their file objects: zstandard's accepts truncated files, lzma's
has no memory limit, and none of them limits the expansion ratio.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

_STORED_CHUNK = 4096  # small, because one call decompresses all of it
_BUFFER_BYTES = 1 << 17
_FREE_BYTES = 1 << 28  # any file may expand to this size,
_MOST_EXPANSION = 1000  # plus this multiple of its compressed size
_XZ_MEMORY = 1 << 28
_BROKEN = (zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError, OSError)  # bz2 raises the last two

COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".zst")


class Unreadable(OSError):
    """A file's bytes are invalid; the message says how, without naming the file."""


def expanded(stored: Any, name: str, zstd_window_log: int) -> BinaryIO:
    """A buffered stream of the bytes of ``stored``, decompressed according to the extension of ``name``.

    Reading raises Unreadable when the data is damaged, truncated, or a decompression bomb.
    """
    begin = _decompressor(name, zstd_window_log)
    raw: io.RawIOBase = _Plain(stored) if begin is None else _Frames(stored, begin)
    return io.BufferedReader(raw, _BUFFER_BYTES)


def check_expansion(expanded_bytes: int, stored_bytes: int) -> None:
    """Raise Unreadable when the expansion ratio is larger than that of any real text."""
    if expanded_bytes > _FREE_BYTES + _MOST_EXPANSION * stored_bytes:
        raise Unreadable(f"{stored_bytes} bytes expand to more than {_MOST_EXPANSION} times as many; reading stopped")


def _decompressor(name: str, zstd_window_log: int) -> Callable[[], Any] | None:
    match name.lower().rsplit(".", 1)[-1]:
        case "gz" | "tgz":
            return lambda: zlib.decompressobj(31)
        case "bz2" | "tbz2" | "tbz":
            return bz2.BZ2Decompressor
        case "xz" | "txz" | "lzma":
            return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        case "zst" | "tzst":
            return lambda: zstandard.ZstdDecompressor(max_window_size=1 << zstd_window_log).decompressobj()
    return None


class _Plain(io.RawIOBase):
    """Uncompressed bytes of a file object that only needs ``read``."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stored.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stored.close()
        super().close()


class _Frames(_Plain):
    """Concatenated compressed frames, with a new decompressor for each."""

    def __init__(self, stored: Any, begin: Callable[[], Any]) -> None:
        super().__init__(stored)
        self._begin = begin
        self._frame: Any = None
        self._rest = b""  # stored bytes after the end of a frame
        self._ready = memoryview(b"")
        self._n_stored = self._n_expanded = 0

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._stored.read(_STORED_CHUNK)
            if not data and self._frame is not None and self._frame.eof:
                return 0
            if not data:
                raise Unreadable("the compressed data is truncated")
            self._rest = b""
            self._expand(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _expand(self, data: bytes) -> None:
        self._n_stored += len(data)
        if self._frame is not None and self._frame.eof:
            data = data.lstrip(b"\0")  # gzip and xz allow zero padding
            if not data:
                return
        try:
            if self._frame is None or self._frame.eof:
                self._frame = self._begin()
            self._ready = memoryview(self._frame.decompress(data))
        except _BROKEN as error:
            if "requires too much memory" in str(error):
                raise Unreadable(
                    "a frame's window (zstd --long) exceeds the limit; raise the source's `zstd_window_log`"
                ) from None
            raise Unreadable(f"damaged, or not the format its extension says: {error}") from None
        self._rest = self._frame.unused_data if self._frame.eof else b""
        self._n_stored -= len(self._rest)
        self._n_expanded += len(self._ready)
        check_expansion(self._n_expanded, self._n_stored)
