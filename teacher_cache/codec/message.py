"""Arrow IPC streams of one record batch: the content of every tar member, with one row, or several in a bundle.

Any Arrow library can read these payloads. This reader parses the bytes directly: pyarrow's objects for a few small
columns take as long as decompressing them, and pyarrow expands an Arrow-compressed body to whatever size it declares.
Only the output of ``write_row`` and ``write_batch`` is accepted: one batch, no nulls, no Arrow compression. Every
offset is checked against the payload's end, so allocations never exceed the payload's size.

Source: Apache Arrow, "Serialization and Interprocess Communication", and its ``Message.fbs``.
"""

import operator
import struct
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from schemas.errors import CorruptCacheError

_CONTINUATION = 0xFFFFFFFF
_END_OF_STREAM = struct.pack("<II", _CONTINUATION, 0)
_RECORD_BATCH = 3  # MessageHeader.RecordBatch
# Fields as offsets into the vtable of the flatbuffers tables Message and RecordBatch.
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY_LENGTH, _MESSAGE_CUSTOM_METADATA = 6, 8, 10, 12
_NOT_ARROW = (struct.error, IndexError, ValueError, pa.ArrowException, OSError, MemoryError)
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION = 4, 6, 8, 10


def write_row(schema: pa.Schema, row: dict[str, Any]) -> bytes:
    """Write an Arrow IPC stream of one batch of one row."""
    return write_batch(pa.RecordBatch.from_pylist([row], schema=schema))


def write_binary(schema: pa.Schema, value: bytes) -> bytes:
    """Write ``value`` as the only row of the only column, of binaries: as ``write_row``, without pyarrow's copies."""
    head, layout = _empty_binary(schema)
    message = bytearray(head)
    struct.pack_into("<q", message, layout.body_length, 8 + len(value) + -len(value) % 8)
    struct.pack_into("<6q", message, layout.buffers, 0, 0, 0, 8, 8, len(value))  # validity, offsets, bytes
    return b"".join((message, struct.pack("<2i", 0, len(value)), value, bytes(-len(value) % 8), _END_OF_STREAM))


@cache
def _empty_binary(schema: pa.Schema) -> tuple[bytes, "Layout"]:
    """Everything before the body of a row with an empty value."""
    payload = write_row(schema, {schema.names[0]: b""})
    layout = RowReader(schema).learn(payload)
    return payload[: layout.body], layout


def write_batch(batch: pa.RecordBatch) -> bytes:
    """Write an Arrow IPC stream of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def read_columns(schema: pa.Schema, data: bytes) -> pa.Table:
    """Read an untrusted stream of one batch of fixed-width columns. Raises CorruptCacheError."""
    try:
        body_length, _, body = _plain_batch(data, schema)
        _end_of_body(data, body_length, body)
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except _NOT_ARROW as error:
        raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None
    if any(column.null_count for column in table.columns):
        raise CorruptCacheError("the Arrow batch holds nulls")
    return table


def is_arrow(payload: bytes) -> bool:
    """Whether a payload begins like an Arrow IPC stream; no record of a bundle does."""
    return payload[:4] == b"\xff\xff\xff\xff"


def schema_of(payload: bytes) -> pa.Schema:
    """Read the schema of an untrusted stream. Raises CorruptCacheError."""
    try:
        _, stop = _metadata(payload, 0)
        return pa.ipc.read_schema(pa.py_buffer(payload[:stop]))
    except _NOT_ARROW as error:
        raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None


class BinaryColumn(NamedTuple):
    """Only column of a batch: row i is ``payload[start + offsets[i] : start + offsets[i + 1]]``."""

    start: int
    offsets: list[int]


def column_of(schema: pa.Schema, payload: bytes) -> BinaryColumn:
    """Locate the binary column of an untrusted stream of one batch. Raises CorruptCacheError."""
    try:
        body_length, batch, body = _plain_batch(payload, schema)
        end = _end_of_body(payload, body_length, body)
        n_rows = _int64(payload, batch, _BATCH_LENGTH)
        length, nulls = struct.unpack_from("<2q", payload, _vector(payload, batch, _BATCH_NODES, 1))
        places = struct.unpack_from("<6q", payload, _vector(payload, batch, _BATCH_BUFFERS, 3))
    except _NOT_ARROW as error:
        raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None
    (at, n_bytes), (start, size) = places[2:4], places[4:6]
    if length != n_rows or nulls or n_rows < 1:
        raise CorruptCacheError(f"the Arrow batch has {n_rows} rows, {length} entries and {nulls} nulls")
    if min(places) < 0 or body + max(at + n_bytes, start + size) > end or 4 * (n_rows + 1) > n_bytes:
        raise CorruptCacheError("an Arrow buffer lies outside the payload")
    offsets_N = np.frombuffer(payload, "<i4", n_rows + 1, body + at)
    if offsets_N[0] != 0 or (np.diff(offsets_N) < 0).any() or offsets_N[-1] > size:
        raise CorruptCacheError("the offsets of an Arrow column do not increase from 0 to its end")
    return BinaryColumn(body + start, offsets_N.tolist())


@dataclass(frozen=True)
class Layout:
    """Offsets of the fields that differ between payloads of one schema, and all other bytes before the body.

    The offsets follow from the fixed bytes alone, so payloads with the same fixed bytes share a layout.
    """

    body_length: int
    nodes: int
    buffers: int
    body: int
    fixed: tuple[tuple[slice, bytes], ...]


class RowReader:
    """Reads payloads of one schema of string and binary columns.

    The layout of a message is parsed once; later payloads only need the same fixed bytes.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns = {name: column for column, name in enumerate(schema.names)}
        self._n_nodes, self._n_buffers = len(schema), 3 * len(schema)  # per column: validity, offsets, bytes
        self._nodes = struct.Struct(f"<{2 * self._n_nodes}q")  # length and null count of each
        self._buffers = struct.Struct(f"<{2 * self._n_buffers}q")  # offset in the body and size of each
        self._layout: Layout | None = None

    def read(self, payload: bytes) -> "Row":
        """Read the row of an untrusted payload. Raises CorruptCacheError unless it is one row of the schema."""
        try:
            layout = self._layout
            if layout is None or any(payload[place] != fixed for place, fixed in layout.fixed):
                layout = self._layout = self.learn(payload)
            return self._row(payload, layout)
        except _NOT_ARROW as error:
            raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None

    def learn(self, payload: bytes) -> Layout:
        """Parse the layout of a payload. Raises CorruptCacheError, or what ``struct`` and pyarrow raise."""
        layout = self._parse(payload)
        blank = bytearray(payload)
        variable = [(layout.body_length, 8), (layout.nodes, self._nodes.size), (layout.buffers, self._buffers.size)]
        fixed, position = [], 0
        for start, size in sorted(variable):
            blank[start : start + size] = bytes(size)
            fixed.append(slice(position, start))
            position = start + size
        fixed.append(slice(position, layout.body))
        if self._parse(bytes(blank)) != layout:
            raise CorruptCacheError("not a valid Arrow stream: parts of the message overlap")
        return replace(layout, fixed=tuple((place, payload[place]) for place in fixed))

    def _parse(self, payload: bytes) -> Layout:
        body_length, batch, body = _plain_batch(payload, self._schema)
        n_rows = _int64(payload, batch, _BATCH_LENGTH)
        if n_rows != 1:
            raise CorruptCacheError(f"the Arrow batch has {n_rows} rows, wanted 1")
        nodes = _vector(payload, batch, _BATCH_NODES, self._n_nodes)
        buffers = _vector(payload, batch, _BATCH_BUFFERS, self._n_buffers)
        return Layout(body_length, nodes, buffers, body, fixed=())

    def _row(self, payload: bytes, layout: Layout) -> "Row":
        body = layout.body
        end = _end_of_body(payload, layout.body_length, body)
        nodes = self._nodes.unpack_from(payload, layout.nodes)
        buffers = self._buffers.unpack_from(payload, layout.buffers)
        if any(nodes[1::2]):
            raise CorruptCacheError("the Arrow batch holds nulls")
        if min(buffers) < 0 or body + max(map(operator.add, buffers[::2], buffers[1::2])) > end:
            raise CorruptCacheError("an Arrow buffer lies outside the payload")
        return Row(self._columns, payload, body, nodes[::2], buffers)


class Row:
    """Columns of one row, read on demand. Every method raises CorruptCacheError for invalid bytes."""

    def __init__(
        self, columns: dict[str, int], payload: bytes, body: int, lengths: tuple[int, ...], buffers: tuple[int, ...]
    ) -> None:
        self._columns = columns
        self._payload = payload
        self._body = body
        self._lengths = lengths
        self._buffers = buffers

    def text(self, name: str) -> str:
        """Value of a string column."""
        try:
            return str(self.binary(name), "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptCacheError(f"column {name} is not UTF-8: {error.reason}") from None

    def binary(self, name: str) -> memoryview:
        """Value of a string or binary column, as a view of the payload."""
        column = self._columns[name]
        if self._lengths[column] != 1:
            raise CorruptCacheError(f"column {name} has {self._lengths[column]} entries, wanted 1")
        offsets, data = 3 * column + 1, 3 * column + 2
        start, end = struct.unpack_from("<2i", self._payload, self._start(name, offsets, 8))
        if start != 0 or end < 0:
            raise CorruptCacheError(f"column {name}: offsets {start} and {end}, wanted 0 and its end")
        place = self._start(name, data, end)
        return memoryview(self._payload)[place : place + end]

    def _start(self, name: str, buffer: int, n_bytes: int) -> int:
        """Offset in the payload of a buffer that must hold ``n_bytes``."""
        start, size = self._buffers[2 * buffer : 2 * buffer + 2]
        if n_bytes > size:
            raise CorruptCacheError(f"column {name}: {n_bytes} bytes wanted from a buffer of {size} bytes")
        return self._body + start


def _metadata(payload: bytes, position: int) -> tuple[int, int]:
    """Start and end of the metadata of the message at ``position``; its body, if any, follows."""
    mark, size = struct.unpack_from("<II", payload, position)
    start = position + 8
    if mark != _CONTINUATION or start + size > len(payload):
        raise CorruptCacheError("not a valid Arrow stream: no message where one is expected")
    return start, start + size


def _plain_batch(payload: bytes, schema: pa.Schema) -> tuple[int, int, int]:
    """Offsets of the first message's body length, its record batch and its (uncompressed) body."""
    found = schema_of(payload)
    if not found.equals(schema):
        raise CorruptCacheError(f"the Arrow schema is {found.names}, wanted {schema.names}")
    start, body = _metadata(payload, _metadata(payload, 0)[1])
    message = start + struct.unpack_from("<I", payload, start)[0]
    header_type = _field(payload, message, _MESSAGE_HEADER_TYPE)
    header = _field(payload, message, _MESSAGE_HEADER)
    body_length = _field(payload, message, _MESSAGE_BODY_LENGTH)
    if not header or not header_type or not body_length or payload[header_type] != _RECORD_BATCH:
        raise CorruptCacheError("the Arrow stream does not hold a record batch")
    batch = header + struct.unpack_from("<I", payload, header)[0]
    if _field(payload, batch, _BATCH_COMPRESSION) or _field(payload, message, _MESSAGE_CUSTOM_METADATA):
        raise CorruptCacheError("the Arrow batch is compressed, wanted a plain one")
    return body_length, batch, body


def _end_of_body(payload: bytes, body_length: int, body: int) -> int:
    end = body + struct.unpack_from("<q", payload, body_length)[0]
    if payload[end:] != _END_OF_STREAM or end < body:
        raise CorruptCacheError("the Arrow stream does not end after its first batch")
    return end


def _field(payload: bytes, table: int, slot: int) -> int | None:
    """Offset of a field of the flatbuffers table at ``table``, or None if absent."""
    vtable = table - struct.unpack_from("<i", payload, table)[0]
    if slot >= struct.unpack_from("<H", payload, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", payload, vtable + slot)[0]
    return table + offset if offset else None


def _int64(payload: bytes, table: int, slot: int) -> int:
    """Value of an int64 field of the flatbuffers table at ``table``; 0 if absent."""
    field = _field(payload, table, slot)
    return 0 if field is None else struct.unpack_from("<q", payload, field)[0]


def _vector(payload: bytes, table: int, slot: int, count: int) -> int:
    """Offset of the first struct (FieldNode or Buffer) of a vector that must have ``count`` of them."""
    field = _field(payload, table, slot)
    vector = 0 if field is None else field + struct.unpack_from("<I", payload, field)[0]
    found = struct.unpack_from("<I", payload, vector)[0] if vector else 0
    if found != count:
        raise CorruptCacheError(f"the Arrow batch has {found} nodes or buffers, wanted {count}")
    return vector + 4
