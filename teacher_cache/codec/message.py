"""One-row Arrow IPC streams: the payload of every tar member.

Payloads are untrusted, and Arrow offers no limit on memory. Ours never use Arrow's own body compression (columns that
compress well hold zstd frames whose sizes are checked), so a payload that does is refused before it is expanded: what
is read then lies inside the payload's bytes. Reading message by message also halves the time of Arrow's stream reader.
"""

import functools
import struct
from typing import Any

import pyarrow as pa

from schemas.errors import CorruptCacheError

# Fields of Arrow's flatbuffers tables, as offsets into the table's vtable (Message.fbs of the Arrow format).
_MESSAGE_HEADER = 8
_MESSAGE_CUSTOM_METADATA = 12  # an early form of body compression was declared here
_BATCH_COMPRESSION = 10


def write_row(schema: pa.Schema, row: dict[str, Any]) -> bytes:
    """An Arrow IPC stream with one batch of one row."""
    batch = pa.RecordBatch.from_pylist([row], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def read_row(schema: pa.Schema, payload: bytes) -> pa.RecordBatch:
    """The one-row batch of an untrusted payload, with its internal offsets validated. Raises CorruptCacheError."""
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(payload))
        found = _parse_schema(reader.read_next_message().metadata.to_pybytes())
        if not found.equals(schema):
            raise CorruptCacheError(f"the Arrow schema is {found.names}, wanted {schema.names}")
        message = reader.read_next_message()
        if message.type != "record batch":
            raise CorruptCacheError(f"the Arrow stream holds a {message.type} message, wanted a record batch")
        if _declares_compression(message.metadata.to_pybytes()):
            raise CorruptCacheError("the Arrow batch is compressed, wanted a plain one")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        _expect_end(reader)
    except (pa.ArrowException, StopIteration, OSError, MemoryError, struct.error) as error:
        raise CorruptCacheError(f"not a valid Arrow stream: {error or 'it ends too early'}") from None
    if batch.num_rows != 1:
        raise CorruptCacheError(f"the Arrow batch has {batch.num_rows} rows, wanted 1")
    return batch


@functools.lru_cache(maxsize=8)
def _parse_schema(metadata: bytes) -> pa.Schema:
    """The schema of a schema message; all samples of a cache carry the same few bytes."""
    return pa.ipc.read_schema(pa.py_buffer(struct.pack("<iI", -1, len(metadata)) + metadata))


def _declares_compression(metadata: bytes) -> bool:
    if _field(metadata, _root(metadata), _MESSAGE_CUSTOM_METADATA) is not None:
        return True
    header = _field(metadata, _root(metadata), _MESSAGE_HEADER)
    if header is None:
        raise CorruptCacheError("the Arrow message has no header")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, _BATCH_COMPRESSION) is not None


def _root(metadata: bytes) -> int:
    return struct.unpack_from("<I", metadata)[0]


def _field(metadata: bytes, table: int, slot: int) -> int | None:
    """Position of a field of the flatbuffers table at ``table``; None when it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if slot >= struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    return table + offset if (offset := struct.unpack_from("<H", metadata, vtable + slot)[0]) else None


def _expect_end(reader: pa.ipc.MessageReader) -> None:
    try:
        reader.read_next_message()
    except StopIteration:
        return
    raise CorruptCacheError("the Arrow stream holds more than one batch")


def text_value(batch: pa.RecordBatch, name: str) -> str:
    """A string column's value. Raises CorruptCacheError when it is null."""
    value = batch.column(name)[0].as_py()
    if value is None:
        raise CorruptCacheError(f"column {name} is null")
    return value


def list_value(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The entries of a list column. Raises CorruptCacheError when it, or one of them, is null."""
    values = batch.column(name)[0].values
    if values is None or values.null_count:
        raise CorruptCacheError(f"column {name} holds nulls")
    return values
