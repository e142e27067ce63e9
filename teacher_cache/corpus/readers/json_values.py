"""JSON files: an array of objects, or concatenated objects, on one line or many, parsed incrementally.

Memory is bounded by the largest record, not by the file. A broken record is fatal, because the start of the next is
unknown, unless the file turns out to be JSON lines.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

from schemas.errors import UserError
from teacher_cache.corpus.content_parts import MOST_BYTES, Part
from teacher_cache.corpus.documents import BadRecord, Record, brief
from teacher_cache.corpus.expand import Unreadable
from teacher_cache.corpus.readers.json_lines import read_json_lines

_CHUNK_CHARACTERS = 1 << 16
_SPACE = " \t\r\n"
_END_OF_VALUE = '}]"'


def read_json(part: Part) -> Iterator[Record | BadRecord]:
    """Yield the objects of a file. Raises UserError, with the record's number, for broken JSON."""
    if not begins_with_array(part) and _first_line_is_an_object(part):
        yield from read_json_lines(part)
        return
    number = 0
    try:
        for value in _values(_Window(io.TextIOWrapper(part.stream, "utf-8", newline=""))):
            number += 1
            place = f"{part.path}: record {number}"
            if isinstance(value, dict):
                yield f"{part.name}#{number}", place, value
            else:
                yield BadRecord(f"{place}: expected a JSON object, got {brief(value)}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{part.path}: record {number + 1}: broken JSON: {error}") from None


def begins_with_array(part: Part) -> bool:
    """Whether the file's first non-blank character opens a JSON array."""
    return part.stream.peek(_CHUNK_CHARACTERS).lstrip().startswith(b"[")


def _first_line_is_an_object(part: Part) -> bool:
    line, _, rest = part.stream.peek(_CHUNK_CHARACTERS).lstrip().partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(str(line, "utf-8")), dict)
    except (ValueError, RecursionError):
        return False


class _Window:
    """Sliding window over a text stream."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def next(self) -> str:
        """The next non-blank character; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Consume one character."""
        self._at += 1

    def value(self) -> Any:
        """Parse the JSON value at the current offset. Raises ValueError."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self._text) - 16 or error.msg.startswith("Unterminated string")
                if self._ended or not cut_off:
                    raise ValueError(error.msg) from None
            else:
                if self._ended or self._text[end - 1] in _END_OF_VALUE or end < len(self._text):
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        left = self._text[self._at :]
        if len(left) > MOST_BYTES:
            raise Unreadable(f"a record is longer than {MOST_BYTES} characters; reading stopped")
        piece = self._stream.read(max(_CHUNK_CHARACTERS, len(left)))  # doubling avoids quadratic time
        self._ended = not piece
        self._text, self._at = left + piece, 0


def _values(window: _Window) -> Iterator[Any]:
    """Yield each value of the array, or of the file."""
    if window.next() != "[":
        while window.next():
            yield window.value()
        return
    window.skip()
    while window.next() != "]":
        yield window.value()
        after = window.next()
        if after == ",":
            window.skip()
            if window.next() == "]":
                raise ValueError("trailing comma in the array")
        elif after != "]":
            raise ValueError(f"expected a comma or the end of the array, got {after!r}" if after else "the file ends")
    window.skip()
    if window.next():
        raise ValueError("unexpected data after the array")
