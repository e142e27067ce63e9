"""One-row Arrow IPC streams: the payload of every tar member.

Any Arrow library reads these payloads. Our own reading goes to the bytes directly: pyarrow's objects around a few small
columns cost as much time as decompressing them, and pyarrow expands a body that declares Arrow's own compression to
whatever size it claims. Only what ``write_row`` writes is accepted: one batch of one row, no nulls, no Arrow
compression. Every offset is checked against the payload's end, so nothing is allocated beyond the payload's size.

Source: Apache Arrow, "Serialization and Interprocess Communication", and its ``Message.fbs``.
"""

import itertools
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.errors import CorruptCacheError

_CONTINUATION = 0xFFFFFFFF
_END_OF_STREAM = struct.pack("<II", _CONTINUATION, 0)
_RECORD_BATCH = 3  # MessageHeader.RecordBatch
# Fields as offsets into the vtable of the flatbuffers tables Message and RecordBatch.
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY_LENGTH, _MESSAGE_CUSTOM_METADATA = 6, 8, 10, 12
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION = 4, 6, 8, 10


def write_row(schema: pa.Schema, row: dict[str, Any]) -> bytes:
    """An Arrow IPC stream with one batch of one row."""
    batch = pa.RecordBatch.from_pylist([row], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Column:
    """Where a column of a schema stands in a batch: its first node and buffer, and the type of its (list's) entries."""

    node: int
    buffer: int
    entries: pa.DataType


class RowReader:
    """Reads payloads of one schema, whose columns are strings and lists of integers, bools or binaries."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns: dict[str, Column] = {}
        self._n_nodes = self._n_buffers = 0
        for field in schema:
            is_list = pa.types.is_list(field.type)
            entries = field.type.value_type if is_list else field.type
            self._columns[field.name] = Column(self._n_nodes, self._n_buffers, entries)
            self._n_nodes += 1 + is_list
            self._n_buffers += 2 * is_list + (3 if _has_offsets(entries) else 2)

    def read(self, payload: bytes) -> "Row":
        """The row of an untrusted payload. Raises CorruptCacheError unless it is a stream of one row of the schema."""
        try:
            return self._read(payload)
        except (struct.error, IndexError, ValueError, pa.ArrowException, OSError, MemoryError) as error:
            raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None

    def _read(self, payload: bytes) -> "Row":
        start, stop = _metadata(payload, 0)
        found = _parse_schema(payload[start:stop])
        if not found.equals(self._schema):
            raise CorruptCacheError(f"the Arrow schema is {found.names}, wanted {self._schema.names}")
        start, body = _metadata(payload, stop)
        message = start + struct.unpack_from("<I", payload, start)[0]
        header_type = _field(payload, message, _MESSAGE_HEADER_TYPE)
        header = _field(payload, message, _MESSAGE_HEADER)
        if not header or not header_type or payload[header_type] != _RECORD_BATCH:
            raise CorruptCacheError("the Arrow stream does not hold a record batch")
        batch = header + struct.unpack_from("<I", payload, header)[0]
        if _field(payload, batch, _BATCH_COMPRESSION) or _field(payload, message, _MESSAGE_CUSTOM_METADATA):
            raise CorruptCacheError("the Arrow batch is compressed, wanted a plain one")
        n_rows = _int64(payload, batch, _BATCH_LENGTH)
        if n_rows != 1:
            raise CorruptCacheError(f"the Arrow batch has {n_rows} rows, wanted 1")
        end = body + _int64(payload, message, _MESSAGE_BODY_LENGTH)
        if payload[end:] != _END_OF_STREAM or end < body:
            raise CorruptCacheError("the Arrow stream does not end after its first batch")
        nodes = _pairs(payload, batch, _BATCH_NODES, self._n_nodes)
        buffers = _pairs(payload, batch, _BATCH_BUFFERS, self._n_buffers)
        if any(nodes[1::2]):
            raise CorruptCacheError("the Arrow batch holds nulls")
        ends = [offset + size for offset, size in zip(buffers[::2], buffers[1::2], strict=True)]
        if min(buffers) < 0 or body + max(ends) > end:
            raise CorruptCacheError("an Arrow buffer lies outside the payload")
        return Row(self._columns, payload, body, nodes[::2], buffers)


class Row:
    """The columns of one row, read on demand. Every method raises CorruptCacheError where the bytes are not valid."""

    def __init__(
        self, columns: dict[str, Column], payload: bytes, body: int, lengths: tuple[int, ...], buffers: tuple[int, ...]
    ) -> None:
        self._columns = columns
        self._payload = payload
        self._body = body
        self._lengths = lengths
        self._buffers = buffers

    def text(self, name: str) -> str:
        """A string column's value."""
        column = self._columns[name]
        try:
            return str(self._slices(name, 1, column.buffer + 1)[0], "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptCacheError(f"column {name} is not UTF-8: {error.reason}") from None

    def values(self, name: str) -> np.ndarray:
        """The entries of a list of integers or bools; integers are a read-only view of the payload."""
        column, count = self._columns[name], self._list_length(name)
        if pa.types.is_boolean(column.entries):
            bits = self._array(name, column.buffer + 3, np.uint8, -(-count // 8))
            return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        return self._array(name, column.buffer + 3, column.entries.to_pandas_dtype(), count)

    def frames(self, name: str) -> list[memoryview]:
        """The entries of a list of binaries."""
        return self._slices(name, self._list_length(name), self._columns[name].buffer + 3)

    def _list_length(self, name: str) -> int:
        column = self._columns[name]
        count = self._lengths[column.node + 1]
        if self._array(name, column.buffer + 1, np.int32, 2).tolist() != [0, count]:
            raise CorruptCacheError(f"column {name}: the list's offsets are not those of its {count} entries")
        return count

    def _slices(self, name: str, count: int, buffer: int) -> list[memoryview]:
        offsets = self._array(name, buffer, np.int32, count + 1).tolist() if count else [0]
        start, size = self._buffers[2 * buffer + 2 : 2 * buffer + 4]
        if offsets[0] != 0 or offsets[-1] > size or offsets != sorted(offsets):
            raise CorruptCacheError(f"column {name}: offsets outside the data or not rising")
        data = memoryview(self._payload)[self._body + start :]
        return [data[begin:end] for begin, end in itertools.pairwise(offsets)]

    def _array(self, name: str, buffer: int, dtype: Any, count: int) -> np.ndarray:
        start, size = self._buffers[2 * buffer : 2 * buffer + 2]
        if count < 0 or count * np.dtype(dtype).itemsize > size:
            raise CorruptCacheError(f"column {name}: {count} entries do not fit into a buffer of {size} bytes")
        return np.frombuffer(self._payload, dtype, count, self._body + start)


def _has_offsets(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


@lru_cache(maxsize=8)
def _parse_schema(metadata: bytes) -> pa.Schema:
    """The schema of a schema message; all samples of a cache carry the same few bytes."""
    return pa.ipc.read_schema(pa.py_buffer(struct.pack("<II", _CONTINUATION, len(metadata)) + metadata))


def _metadata(payload: bytes, position: int) -> tuple[int, int]:
    """Start and end of the metadata of the message at ``position``; its body, if any, begins at that end."""
    mark, size = struct.unpack_from("<II", payload, position)
    start = position + 8
    if mark != _CONTINUATION or start + size > len(payload):
        raise CorruptCacheError("not a valid Arrow stream: no message where one is expected")
    return start, start + size


def _field(payload: bytes, table: int, slot: int) -> int | None:
    """Position of a field of the flatbuffers table at ``table``; None when it is absent."""
    vtable = table - struct.unpack_from("<i", payload, table)[0]
    if slot >= struct.unpack_from("<H", payload, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", payload, vtable + slot)[0]
    return table + offset if offset else None


def _int64(payload: bytes, table: int, slot: int) -> int:
    """An int64 field of the flatbuffers table at ``table``; 0 when it is absent."""
    field = _field(payload, table, slot)
    return 0 if field is None else struct.unpack_from("<q", payload, field)[0]


def _pairs(payload: bytes, table: int, slot: int, count: int) -> tuple[int, ...]:
    """The int64 pairs of a vector of ``count`` structs (FieldNode or Buffer), one after the other."""
    field = _field(payload, table, slot)
    vector = 0 if field is None else field + struct.unpack_from("<I", payload, field)[0]
    found = struct.unpack_from("<I", payload, vector)[0] if vector else 0
    if found != count:
        raise CorruptCacheError(f"the Arrow batch has {found} nodes or buffers, wanted {count}")
    return struct.unpack_from(f"<{2 * count}q", payload, vector + 4)
