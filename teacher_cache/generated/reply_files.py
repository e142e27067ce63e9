"""Files of prompts, of replies, and of other rows with a schema: a zstd frame of one Arrow IPC stream of one batch.

One frame around the whole stream, because its declared size is checked before anything is allocated; what Arrow itself
compresses expands to whatever it declares. A file is read as a whole, so memory is bounded by one unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import zstandard

from schemas.arrow import PROMPTS_SCHEMA, REPLIES_SCHEMA
from schemas.errors import CorruptCacheError, UserError
from schemas.generated_manifest import MAX_CONTENT_BYTES, ContentEntry
from schemas.manifest import FileEntry
from teacher_cache.codec.message import read_columns, write_batch
from teacher_cache.shards.storage import Storage, check_content, file_entry

LEVEL = 3  # of zstd
_IDS = ("prompt_ids", "reply_ids")


class _HasSchema(Protocol):
    SCHEMA: ClassVar[pa.Schema]
    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=_HasSchema)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the generator reads it; ``schemas.arrow`` says what the fields are."""

    SCHEMA: ClassVar[pa.Schema] = PROMPTS_SCHEMA

    key: str
    source_id: str
    layer: str
    prompt: str
    prompt_ids: np.ndarray  # uint32 [P]
    chat: bytes


@dataclass(frozen=True)
class Reply:
    """One reply to the prompt with this key."""

    SCHEMA: ClassVar[pa.Schema] = REPLIES_SCHEMA

    key: str
    sample: int
    reply: str
    reply_ids: np.ndarray  # uint32 [N]
    finish: str
    reason: str
    seed: int
    sampling: str
    template: str
    generator: str
    made: str = ""


def write_rows(storage: Storage, name: str, rows: Sequence[Row], owner: str = "") -> ContentEntry:
    """Write a file of prompts, replies or other rows, atomically. Equal rows give equal bytes.

    Raises UserError if they are larger than readers accept.
    """
    schema = rows[0].SCHEMA
    columns: dict[str, list[Any]] = {column: [getattr(row, column) for row in rows] for column in schema.names}
    for column in set(_IDS) & columns.keys():
        columns[column] = [ids.astype("<u4", copy=False).tobytes() for ids in columns[column]]
    content = write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))
    if len(content) > MAX_CONTENT_BYTES:
        raise UserError(
            f"{storage.where(name)}: {len(content)} bytes, at most {MAX_CONTENT_BYTES} are allowed; choose another "
            "output.path with fewer replies or records per shard (output.…_per_shard)"
        )
    data = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(content)
    storage.put(name, data, owner)
    return ContentEntry(**file_entry(data).model_dump(), content_bytes=len(content))


def read_rows(kind: type[Row], storage: Storage, name: str, entry: ContentEntry, n_rows: int) -> list[Row]:
    """Read a file of prompts or replies. Raises CorruptCacheError unless it is what ``entry`` and ``n_rows`` say."""
    where = storage.where(name)
    data = storage.read(name, min(entry.bytes, MAX_CONTENT_BYTES))
    check_content(data, FileEntry(bytes=entry.bytes, sha256=entry.sha256), where)
    try:
        table = read_columns(kind.SCHEMA, _decompressed(data, entry.content_bytes))
        if table.num_rows != n_rows:
            raise CorruptCacheError(f"{table.num_rows} rows, wanted {n_rows}")
        columns = {column: _values(table, column) for column in table.column_names}
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{where}: {error}") from None
    return [kind(*row) for row in zip(*(columns[field.name] for field in fields(kind)), strict=True)]


def _decompressed(data: bytes, n_bytes: int) -> bytes:
    try:
        if zstandard.frame_content_size(data) != n_bytes:  # declared; nothing is allocated before
            raise CorruptCacheError(f"a zstd frame that does not declare {n_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptCacheError(f"broken zstd frame: {error}") from None


def _values(table: pa.Table, column: str) -> list[Any]:
    try:
        values = table.column(column).to_pylist()
    except UnicodeDecodeError as error:
        raise CorruptCacheError(f"column {column}: not UTF-8: {error.reason}") from None
    if column not in _IDS:
        return values
    if any(len(ids) % 4 for ids in values):
        raise CorruptCacheError(f"column {column}: not 32-bit ids")
    return [np.frombuffer(ids, "<u4") for ids in values]
