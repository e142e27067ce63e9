"""One-row Arrow IPC streams: the payload of every tar member."""

from typing import Any

import pyarrow as pa

from schemas.errors import CorruptCacheError


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
        reader = pa.ipc.RecordBatchStreamReader(pa.py_buffer(payload))
        if not reader.schema.equals(schema):
            raise CorruptCacheError(f"the Arrow schema is {reader.schema.names}, wanted {schema.names}")
        batch = reader.read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, StopIteration, OSError, MemoryError) as error:
        raise CorruptCacheError(f"not a valid Arrow stream: {error}") from None
    if batch.num_rows != 1:
        raise CorruptCacheError(f"the Arrow batch has {batch.num_rows} rows, wanted 1")
    return batch
