"""Text files: one document per file, line, or paragraph. Lines and paragraphs are streamed."""

from collections.abc import Iterator
from functools import partial

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.content_parts import MOST_BYTES, Part, read_all
from teacher_cache.corpus.documents import BadRecord, Record
from teacher_cache.corpus.expand import Unreadable


def read_text(part: Part, source: SourceConfig) -> Iterator[Record | BadRecord]:
    """Yield the documents of a file as ``{source.text_field: …}``, split according to ``source.split``.

    Invalid UTF-8 makes a line or paragraph a bad record; with ``split: file`` it raises UserError.
    """
    if source.split == "file":
        yield f"{part.name}#1", part.path, {source.text_field: _whole(part, source)}
        return
    pieces = _lines(part) if source.split == "line" else _paragraphs(part)
    for number, line, data in pieces:
        place = f"{part.path}:{line}"
        try:
            yield f"{part.name}#{number}", place, {source.text_field: str(data, "utf-8")}
        except UnicodeDecodeError as error:
            yield BadRecord(f"{place}: not UTF-8 text: {_describe(error)}; set the source's `encoding`")


def _lines(part: Part) -> Iterator[tuple[int, int, bytes]]:
    """Record number (its line), number of its first line, and bytes of each non-blank line."""
    for number, line in enumerate(iter(partial(part.stream.readline, MOST_BYTES), b""), start=1):
        if len(line) == MOST_BYTES:
            raise Unreadable(f"line {number} is longer than {MOST_BYTES} bytes; reading stopped")
        if line.strip():
            yield number, number, line.rstrip(b"\r\n")


def _paragraphs(part: Part) -> Iterator[tuple[int, int, bytes]]:
    """The same for paragraphs, counted from 1."""
    number, lines, size, next_line = 0, list[bytes](), 0, 1
    for _, line_number, line in _lines(part):
        if lines and line_number > next_line:
            number += 1
            yield number, next_line - len(lines), b"\n".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        next_line = line_number + 1
        if size > MOST_BYTES:
            raise Unreadable(f"the paragraph before line {next_line} is longer than {MOST_BYTES} bytes")
    if lines:
        yield number + 1, next_line - len(lines), b"\n".join(lines)


def _whole(part: Part, source: SourceConfig) -> str:
    data = read_all(part.stream)
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{part.path}: not UTF-8 text: {_describe(error)}; set `encoding`, or exclude the file with `pattern` "
            f"({source.pattern!r} matches {part.name!r})"
        ) from None


def _describe(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
