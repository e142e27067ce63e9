"""One-row Arrow IPC streams: the payload of every tar member.

Reading goes to the bytes directly instead of through pyarrow, whose objects around six small columns cost as much as
decompressing them, and which would expand a body that declares Arrow's own compression to whatever size it claims. Only
what ``write_row`` writes is accepted: columns of our schemas, one batch, one row, no nulls, no Arrow compression. Every
offset is checked against the payload's length, so nothing is allocated but what the payload holds. Any Arrow library
reads these payloads; see https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

import functools
import struct
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.errors import CorruptCacheError

_CONTINUATION = 0xFFFFFFFF
_END_OF_STREAM = struct.pack("<II", _CONTINUATION, 0)
_RECORD_BATCH = 3  # MessageHeader.RecordBatch
# Fields as offsets into the vtable of Arrow's flatbuffers tables Message and RecordBatch.
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_CUSTOM_METADATA = 6, 8, 12
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION = 4, 6, 8, 10


def write_row(schema: pa.Schema, row: dict[str, Any]) -> bytes:
    """An Arrow IPC stream with one batch of one row."""
    batch = pa.RecordBatch.from_pylist([row], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


class Row:
    """The row of an untrusted payload. All methods raise CorruptCacheError where the bytes contradict the schema."""

    def __init__(self, schema: pa.Schema, payload: bytes) -> None:
        """Raises CorruptCacheError unless ``payload`` is a stream of one row of ``schema``."""
        try:
            metadata, self._body = _messages(schema, payload)
            nodes, self._buffers = _record_batch(metadata)
        except (struct.error, ValueError, pa.ArrowException, OSError, MemoryError) as error:
            raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None
        self._columns = _layout(tuple(schema.names)) if False else _columns(schema)
        self._nodes = nodes
