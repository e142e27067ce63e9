"""CSV and TSV: a header line with field names, then one record per row; quoted cells may contain newlines.

The delimiter of ``csv`` is the most frequent of comma, semicolon, tab and bar in the header line.
"""

import csv
import io
from collections.abc import Iterator
from functools import partial

from schemas.errors import UserError
from teacher_cache.corpus.content_parts import MOST_BYTES, Part
from teacher_cache.corpus.documents import BadRecord, Record

_DELIMITERS = ",;\t|"


def read_table(part: Part) -> Iterator[Record | BadRecord]:
    """Yield the rows of a file, counted from 1 after the header. Raises UserError for duplicate header fields."""
    csv.field_size_limit(MOST_BYTES)
    text = io.TextIOWrapper(part.stream, "utf-8", newline="")
    lines = iter(partial(text.readline, MOST_BYTES), "")
    try:
        first = next(lines, "")
        delimiter = "\t" if part.format == "tsv" else max(_DELIMITERS, key=first.count)
        rows = csv.reader(_again(first, lines), delimiter=delimiter, strict=True)
        names = _header(rows, part.path)
        number = 0
        while True:
            number += 1
            place = f"{part.path}: record {number}"
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRecord(f"{place}: broken row: {error}")
                continue
            if len(cells) == len(names):
                yield f"{part.name}#{number}", place, dict(zip(names, cells, strict=True))
            elif cells:
                yield BadRecord(f"{place}: {len(cells)} cells, expected {len(names)} as in the header {names}")
    except UnicodeDecodeError as error:
        raise UserError(f"{part.path}: not UTF-8 text: {error.reason}; set the source's `encoding`") from None


def _again(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _header(rows: Iterator[list[str]], path: str) -> list[str]:
    try:
        names = [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{path}: broken header line: {error}") from None
    if len(set(names)) < len(names):
        raise UserError(f"{path}: duplicate field in the header {names}; rename one of them")
    return names
