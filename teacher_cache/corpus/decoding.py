"""Transcode text files to UTF-8; everything downstream reads UTF-8 only.

A byte order mark overrides the configured encoding, because it identifies its encoding unambiguously.
"""

import codecs
import io
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 16
_MARKS = (  # longest first: UTF-32's mark starts with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class UndecodableError(OSError):
    """The file's bytes are not valid in its encoding."""


def as_utf8(stream: BinaryIO, encoding: str) -> BinaryIO:
    """The buffered ``stream`` as UTF-8 without a byte order mark. Reading raises UndecodableError.

    Declared UTF-8 is passed through unchecked, so that the reader can report the line number.
    """
    first = stream.peek(_CHUNK_BYTES)[:_CHUNK_BYTES]  # type: ignore[attr-defined]
    for mark, marked in _MARKS:
        if first.startswith(mark):
            stream.read(len(mark))
            encoding = marked
            break
    else:
        if codecs.lookup(encoding).name == "utf-8" and (guess := _unmarked_utf16(first)):
            raise UndecodableError(f"looks like UTF-16 without a byte order mark; set the source's `encoding: {guess}`")
    if codecs.lookup(encoding).name == "utf-8":
        return stream
    return io.BufferedReader(_Recoded(stream, encoding), _CHUNK_BYTES)


def _unmarked_utf16(first: bytes) -> str | None:
    """Guess UTF-16 if almost every second byte is 0, as in text in the Latin script."""
    half = len(first) // 2
    if half >= 8 and 0.8 * half < first[1::2].count(0) and first[::2].count(0) < 0.2 * half:
        return "utf-16-le"
    if half >= 8 and 0.8 * half < first[::2].count(0) and first[1::2].count(0) < 0.2 * half:
        return "utf-16-be"
    return None


class _Recoded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")
        self._offset = 0  # of the next byte to read
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._stream.read(_CHUNK_BYTES)
            self._ended = not data
            pending = len(self._decoder.getstate()[0])
            try:
                text = self._decoder.decode(data, final=self._ended)
            except UnicodeError as error:
                begin = self._offset - pending + getattr(error, "start", 0)
                raise UndecodableError(f"not {self._encoding} text: {error.args[-1]} at offset {begin}") from None
            self._offset += len(data)
            self._ready = memoryview(text.encode("utf-8", "surrogatepass"))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
