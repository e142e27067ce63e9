"""Compressed files (gzip, bzip2, xz, zstd) as streams of bytes, several frames one after the other included.

One small loop over the four decompressors instead of their file objects: zstandard's takes a truncated file for a
whole one, lzma's has no bound on memory, and none of them bounds what a few bytes expand to.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

_STORED_CHUNK = 4096  # small, because one call expands all of it
_BUFFER_BYTES = 1 << 17
_FREE_BYTES = 1 << 28  # any file may expand to so much,
_MOST_EXPANSION = 1000  # and to so many times its size beyond
_XZ_MEMORY = 1 << 28
_BROKEN = (zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError, OSError)  # bz2 raises the last two

COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".zst")


class Unreadable(OSError):
    """The bytes of a file are not what they should be; the message says how, and not which file."""


def expanded(stored: Any, name: str, zstd_window_log: int) -> BinaryIO:
    """A buffered stream of the bytes of ``stored``, decompressed as the extension of ``name`` says.

    Reading raises Unreadable when the data is damaged, truncated, or expands beyond all measure.
    """
    begin = _decompressor(name, zstd_window_log)
    raw: io.RawIOBase = _Plain(stored) if begin is None else _Frames(stored, begin)
    return io.BufferedReader(raw, _BUFFER_BYTES)


def check_expansion(expanded_bytes: int, stored_bytes: int) -> None:
    """Raise Unreadable when so many bytes of so many stored ones are more than any text has."""
    if expanded_bytes > _FREE_BYTES + _MOST_EXPANSION * stored_bytes:
        raise Unreadable(f"{stored_bytes} bytes expand to more than {_MOST_EXPANSION} times as many; not read further")


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
    """Bytes as they are, of a file object that need not have more than ``read``."""

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
    """Compressed frames, each with a decompressor of its own."""

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
                raise Unreadable("the compressed data ends too early: the file is truncated")
            self._rest = b""
            self._expand(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _expand(self, data: bytes) -> None:
        self._n_stored += len(data)
        if self._frame is not None and self._frame.eof:
            data = data.lstrip(b"\0")  # gzip and xz may be padded
            if not data:
                return
        try:
            if self._frame is None or self._frame.eof:
                self._frame = self._begin()
            self._ready = memoryview(self._frame.decompress(data))
        except _BROKEN as error:
            if "requires too much memory" in str(error):
                raise Unreadable(
                    "a frame has a larger window (zstd --long) than is allowed: raise `zstd_window_log` of the source"
                ) from None
            raise Unreadable(f"damaged or not what its name says: {error}") from None
        self._rest = self._frame.unused_data if self._frame.eof else b""
        self._n_stored -= len(self._rest)
        self._n_expanded += len(self._ready)
        check_expansion(self._n_expanded, self._n_stored)
