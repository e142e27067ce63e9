"""Stream the documents of a source: a reader per file format, an adapter for the shape of the records.

Nothing is skipped silently. A faulty file (missing, damaged, wrong encoding) raises UserError. A faulty record (broken
line, unknown fields, a value of the wrong type, an image in a message) yields a BadRecord in place of its document,
and reading continues; the consumer raises or counts it. Only a field that is present and null makes an empty document.
The format, the shape, and ignored columns are logged once per source.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.content_parts import Part, open_parts
from teacher_cache.corpus.corpus_files import SourceFile, find_files
from teacher_cache.corpus.documents import BadRecord, Document, Messages, Record
from teacher_cache.corpus.readers.columns import read_parquet, read_saved
from teacher_cache.corpus.readers.json_lines import read_json_lines
from teacher_cache.corpus.readers.json_values import begins_with_array, read_json
from teacher_cache.corpus.readers.plain_text import read_text
from teacher_cache.corpus.readers.tables import read_table
from teacher_cache.corpus.shapes import Shape, known_shapes

__all__ = ["BadRecord", "Document", "Messages", "read_documents", "read_fields"]

logger = logging.getLogger(__name__)

_MOST_KEY_SETS = 1024
_MOST_IGNORED = 200  # ignored columns that are logged, and
_MOST_LINES = 50  # log lines per source: records may keep introducing new keys
_MOST_NAMES = 20  # per log line


def read_documents(
    source: SourceConfig, where: str, shapes: Sequence[Shape] | None = None
) -> Iterator[Document | BadRecord]:
    """Yield the documents of ``source`` in a fixed order; ``where`` is its config key.

    shapes: that its records may have; by default those of a corpus.

    Reads at most ``source.limit`` records, bad ones included. Raises UserError for faulty files; yields unusable
    records as BadRecord.
    """
    return islice(_Adapter(source, where, known_shapes(source) if shapes is None else shapes).documents(), source.limit)


def read_fields(source: SourceConfig, where: str) -> Iterator[Record | BadRecord]:
    """Yield the records of ``source`` as they are, of any shape; otherwise as ``read_documents``."""
    return islice(_Adapter(source, where, ()).records(), source.limit)


class _Adapter:
    """Turns records into documents; remembers the shapes of each key set, and what was logged."""

    def __init__(self, source: SourceConfig, where: str, shapes: Sequence[Shape]) -> None:
        self._source = source
        self._where = where
        self._shapes = shapes
        self._by_keys: dict[tuple[str, ...], list[tuple[Shape, list[str]]]] = {}
        self._said: set[str] = set()
        self._ignored: set[str] = set()
        self._formats: set[str] = set()

    def documents(self) -> Iterator[Document | BadRecord]:
        layer, by_keys, text_field = self._source.layer, self._by_keys, self._source.text_field
        for record in self.records():
            if isinstance(record, BadRecord):
                yield record
                continue
            source_id, place, fields = record
            keys = tuple(fields)
            fitting = by_keys.get(keys)
            if fitting is None:
                fitting = self._learn(keys)
            if len(fitting) == 1 and fitting[0][0].name == "text" and type(text := fields[text_field]) is str:
                yield Document(source_id, place, layer, text)
                continue
            try:
                yield self._adapted(source_id, place, fields, fitting)
            except BadRecord as error:
                yield error
            except RecursionError:
                yield BadRecord(f"{place}: values are nested too deeply")

    def _adapted(
        self, source_id: str, place: str, fields: Mapping[str, Any], fitting: list[tuple[Shape, list[str]]]
    ) -> Document:
        if not fitting:
            known = "; ".join(
                f"{shape.name} ({', '.join('/'.join(either) for either in shape.required)})" for shape in self._shapes
            )
            raise BadRecord(
                f"{place}: the record's fields are {sorted(map(str, fields))}, expected those of one of: {known}; "
                f"set {self._where}.messages_field or {self._where}.text_field"
            )
        for shape, names in fitting:
            values = [fields[name] for name in names]
            if any(value is not None for value in values) and not (values == [""] and shape.name != "text"):
                content = shape.read(values, fields, place)
                if "messages" not in content:
                    self._ignore([name for name in shape.optional if fields.get(name)])
                return Document(source_id, place, self._source.layer, **{"text": "", **content})
        return Document(source_id, place, self._source.layer, "")

    def _learn(self, keys: tuple[str, ...]) -> list[tuple[Shape, list[str]]]:
        """The shapes that fit records with these keys (the first wins), remembered and logged."""
        fitting = [(shape, names) for shape in self._shapes if (names := shape.required_names(keys)) is not None]
        if len(self._by_keys) >= _MOST_KEY_SETS:
            self._by_keys.clear()
        self._by_keys[keys] = fitting
        if fitting:
            others = ", ".join(shape.name for shape, _ in fitting[1:])
            too = f"; they also fit {others} (set `shape` to choose)" if others else ""
            self._say(f"records are read as {fitting[0][0].name}{too}")
            read = self._names_read(keys)
            self._ignore([key for key in keys if key not in read])
        return fitting

    def _names_read(self, keys: tuple[str, ...]) -> set[str]:
        """Columns that any fitting shape reads: the first, or a later one if the first one's columns are null."""
        return {
            name
            for shape in self._shapes
            if (names := shape.required_names(keys)) is not None
            for name in (*names, *shape.optional)
        }

    def _columns(self, names: list[str]) -> list[str]:
        """The columns of a table to read; all of them if no shape fits, so that the error can name them."""
        self._learn(tuple(names))
        read = self._names_read(tuple(names))
        return [name for name in names if name in read] or names

    def records(self) -> Iterator[Record | BadRecord]:
        """The records of all files."""
        found = find_files(self._source, self._where)
        left_out = list(found.left_out)
        if found.files[0].format == "hf_dataset":
            self._say("a data set written by save_to_disk")
            yield from read_saved(self._source, self._where, self._columns)
            return
        for file in found.files:
            try:
                yield from self._file_records(file, left_out)
            except OSError as error:
                raise UserError(f"{file.path}: cannot be read: {error}") from None

    def _file_records(self, file: SourceFile, left_out: list[str]) -> Iterator[Record | BadRecord]:
        for part in open_parts(file, self._source, left_out):
            if left_out:
                self._say(f"skipped files, not documents: {_joined(left_out)}")
                left_out.clear()
            if part.format not in self._formats:
                self._formats.add(part.format)
                self._say(f"{part.name} is read as {part.format}")
                if self._source.split != "file" and part.format != "text":
                    raise UserError(
                        f"{self._where}.split: {self._source.split} only applies to text, but {part.path} is read as "
                        f"{part.format}; remove `split`, or set `format: text`"
                    )
            yield from self._part_records(part)

    def _part_records(self, part: Part) -> Iterator[Record | BadRecord]:
        match part.format:
            case "parquet":
                return read_parquet(part, self._columns)
            case "json":
                return read_json(part)
            case "csv" | "tsv":
                return read_table(part)
            case "text":
                return read_text(part, self._source)
        if self._source.format == "auto" and begins_with_array(part):
            return read_json(part)
        return read_json_lines(part)

    def _ignore(self, names: list[str]) -> None:
        new = [name for name in names if name not in self._ignored]
        if new and len(self._ignored) < _MOST_IGNORED:
            self._ignored.update(new)
            self._say(f"ignored columns: {_joined(new)}")

    def _say(self, what: str) -> None:
        """Log a message once."""
        if what not in self._said and len(self._said) < _MOST_LINES:
            self._said.add(what)
            more = "; further messages about this source are suppressed" if len(self._said) == _MOST_LINES else ""
            logger.info("%s: %s%s", self._where, what, more)


def _joined(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(str, names[:_MOST_NAMES])) + more
