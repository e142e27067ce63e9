"""Documents out of JSONL, Parquet, text files and saved Hugging Face data sets, one at a time.

A record holds chat messages or plain text. Nothing is skipped in silence: a broken line or a value of the wrong type
stops the run with the place named. Only a field that is there and null counts as an empty document.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.files import SourceFile, list_files

_PARQUET_BATCH_ROWS = 256
_READ_ERRORS = (OSError, EOFError, zlib.error)
Record = tuple[str, str, Mapping[str, Any]]  # source id, place for error messages, fields

Messages = list[dict[str, Any]]
OnBadRecord = Callable[[UserError], None] | None


@dataclass(frozen=True)
class Document:
    """One document as it was read: ``messages`` for a chat, otherwise ``text``."""

    source_id: str  # relative/name#record, records counted from 1
    where: str  # place for error messages
    layer: str
    text: str
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def read_documents(source: SourceConfig, where: str, on_bad_record: OnBadRecord = None) -> Iterator[Document]:
    """Yield the documents of ``source`` in a fixed order, at most ``source.limit``; ``where`` is its config key.

    Raises UserError for missing files, unreadable or undecodable ones, and broken lines; for records of a wrong shape
    too, unless ``on_bad_record`` takes the error, and reading goes on.
    """
    return islice(_documents(source, where, on_bad_record), source.limit)


def _documents(source: SourceConfig, where: str, on_bad_record: OnBadRecord) -> Iterator[Document]:
    files = list_files(source, where)
    for source_id, place, fields in _records(source, files, where):
        try:
            document = _document(source, source_id, place, fields, where)
        except UserError as error:
            if on_bad_record is None:
                raise
            on_bad_record(error)
        else:
            yield document


def _document(source: SourceConfig, source_id: str, place: str, fields: Mapping[str, Any], where: str) -> Document:
    messages = fields.get(source.messages_field)
    text = fields.get(source.text_field)
    document = Document(source_id, place, source.layer, "")
    if messages is not None:
        return replace(document, **_chat(messages, fields, place, source.messages_field))
    if text is not None:
        if not isinstance(text, str):
            raise UserError(f"{place}: {source.text_field} is {_brief(text)}, expected a string")
        return replace(document, text=text)
    if source.messages_field in fields or source.text_field in fields:
        return document
    raise UserError(
        f"{place}: the record has neither {source.messages_field!r} nor {source.text_field!r}, only "
        f"{sorted(map(str, fields))}; set `messages_field` or `text_field` of {where}"
    )


def _records(source: SourceConfig, files: list[SourceFile], where: str) -> Iterator[Record]:
    if source.format == "hf_dataset":
        yield from _hf_records(source, where)
        return
    for file in files:
        try:
            if source.format == "jsonl":
                yield from _json_records(file)
            elif source.format == "parquet":
                yield from _parquet_records(file, source)
            else:
                yield f"{file.name}#1", file.path, {source.text_field: _read_text(file, source)}
        except _READ_ERRORS as error:
            raise UserError(f"{file.path}: cannot be read: {error}") from None


def _json_records(file: SourceFile) -> Iterator[Record]:
    with file.open_expanded() as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{file.path}:{number}"
            try:
                fields = json.loads(line.decode("utf-8").removeprefix("\ufeff")) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: broken line, expected one JSON object in UTF-8: {error}") from None
            if fields is None and not line.strip():
                continue
            if not isinstance(fields, dict):
                raise UserError(f"{place}: expected one JSON object, got {_brief(fields)}")
            yield f"{file.name}#{number}", place, fields


def _parquet_records(file: SourceFile, source: SourceConfig) -> Iterator[Record]:
    wanted = {source.messages_field, source.text_field}
    try:
        with file.open() as stream:
            table = pq.ParquetFile(stream)
            columns = [name for name in table.schema_arrow.names if name in wanted] or table.schema_arrow.names
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{file.name}#{number}", f"{file.path}: record {number}", fields
    except pa.ArrowException as error:
        raise UserError(f"{file.path}: not a readable Parquet file: {error}") from None


def _read_text(file: SourceFile, source: SourceConfig) -> str:
    with file.open_expanded() as stream:
        data = stream.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.path}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; convert the file, "
            f"or choose a `pattern` that leaves it out (it is {source.pattern!r}; {file.name!r} matched)"
        ) from None


def _hf_records(source: SourceConfig, where: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{where}.format: hf_dataset needs the package `datasets`: pip install datasets") from None
    try:
        data = datasets.load_from_disk(source.path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{where}.path: {source.path}: not a data set written by save_to_disk: {error}") from None
    if isinstance(data, datasets.DatasetDict):
        raise UserError(f"{where}.path: {source.path} holds the splits {sorted(data)}; append one of them to `path`")
    wanted = [name for name in data.column_names if name in (source.messages_field, source.text_field)]
    name = source.path.rstrip("/").rsplit("/", 1)[-1]
    for number, fields in enumerate(data.select_columns(wanted) if wanted else data, start=1):
        yield f"{name}#{number}", f"{source.path}: record {number}", fields


def _chat(messages: Any, fields: Mapping[str, Any], place: str, name: str) -> dict[str, Any]:
    """The parts of a ``Document`` that are a chat's, without nulls at any depth: columnar formats add them."""
    messages = _without_nulls(messages)
    if not isinstance(messages, list):
        raise UserError(f"{place}: {name} is {_brief(messages)}, expected a list of {{role, content}}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise UserError(f"{place}: {name}[{index}] is {_brief(message)}, expected {{role, content}}")
        if not isinstance(message.get("role"), str):
            raise UserError(f"{place}: {name}[{index}].role is {_brief(message.get('role'))}, expected a string")
        if not isinstance(message.get("content"), str | list) and not (
            "tool_calls" in message and "content" not in message
        ):
            raise UserError(f"{place}: {name}[{index}].content is {_brief(message.get('content'))}, expected a string")
    return {
        "messages": messages,
        "tools": _without_nulls(fields.get("tools")),
        "documents": _without_nulls(fields.get("documents")),
        "template_kwargs": _without_nulls(fields.get("chat_template_kwargs")) or {},
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _brief(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
