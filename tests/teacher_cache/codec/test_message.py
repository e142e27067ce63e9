"""Untrusted Arrow bytes, through two signals' decoders: read correctly or refused with CorruptCacheError."""

import contextlib
import struct
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import SIGNAL_SCHEMA, TOKENS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from support.synthetic import logits_sample, token_sample
from teacher_cache.codec.message import RowReader, write_binary, write_row
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.tokens import decode_tokens, encode_tokens
from teacher_cache.signals.logits.codec import LogitsCodec

IDS = [5, 6, 7, 2, 9]
CAPTURE = LogitsCapture(k=4)
SAMPLE = token_sample(IDS)
TOKENS = encode_tokens(SAMPLE)
CODEC = LogitsCodec(CAPTURE, CodecConfig(), CodeTable(np.arange(50)))
LOGITS = CODEC.encode(logits_sample(np.random.default_rng(0).normal(size=(5, 50)), np.array(IDS), CAPTURE))
PAYLOADS = {"tokens": TOKENS, "logits": LOGITS}
SCHEMAS = {"tokens": TOKENS_SCHEMA, "logits": SIGNAL_SCHEMA}
SIGNALS = pytest.mark.parametrize("signal", ["tokens", "logits"])


def decode(signal: str, payload: bytes) -> object:
    return decode_tokens(payload, len(IDS), 50) if signal == "tokens" else CODEC.decode(payload, len(IDS))


def refused(signal: str, payload: bytes, match: str | None = None) -> None:
    with pytest.raises(CorruptCacheError, match=match):
        decode(signal, payload)


@SIGNALS
def test_every_truncation_is_refused(signal: str) -> None:
    payload = PAYLOADS[signal]
    decode(signal, payload)
    for size in range(len(payload)):
        refused(signal, payload[:size])


@SIGNALS
def test_bytes_after_the_end_are_refused(signal: str) -> None:
    refused(signal, PAYLOADS[signal] + b"\0")
    refused(signal, PAYLOADS[signal] * 2)


@SIGNALS
def test_an_arrow_compressed_body_is_refused(signal: str) -> None:
    """Compressed buffers declare their uncompressed size, which a hostile file can set to anything."""
    for codec in ("zstd", "lz4"):
        row = [columns(PAYLOADS[signal])]
        refused(signal, arrow_stream(SCHEMAS[signal], row, compression=codec), "compressed")


@SIGNALS
@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_of_another_number_of_rows_is_refused(signal: str, rows: int) -> None:
    refused(signal, arrow_stream(SCHEMAS[signal], [columns(PAYLOADS[signal])] * rows), f"{rows} rows")


@SIGNALS
def test_two_batches_or_none_are_refused(signal: str) -> None:
    schema = SCHEMAS[signal]
    batch = pa.RecordBatch.from_pylist([columns(PAYLOADS[signal])], schema=schema)
    for n_batches in (0, 2):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            for _ in range(n_batches):
                writer.write_batch(batch)
        refused(signal, sink.getvalue().to_pybytes())


def _schema_variants(schema: pa.Schema) -> dict[str, pa.Schema]:
    last, more = len(schema) - 1, pa.field("more", pa.int32())
    field = schema.field(last)
    return {
        "a column less": schema.remove(last),
        "a column more": schema.append(more),
        "another column first": schema.insert(0, more),
        "another type": schema.set(last, pa.field(field.name, pa.large_binary(), nullable=False)),
        "another name": schema.set(last, field.with_name("other")),
        "nulls": schema.set(last, field.with_nullable(True)),
    }


@SIGNALS
@pytest.mark.parametrize("name", _schema_variants(SIGNAL_SCHEMA))
def test_another_schema_is_refused(signal: str, name: str) -> None:
    row = columns(PAYLOADS[signal])
    row |= {"more": 1, "other": row[list(row)[-1]]}
    refused(signal, arrow_stream(_schema_variants(SCHEMAS[signal])[name], [row]), "the Arrow schema is")


def test_columns_in_another_order_are_refused() -> None:
    schema = pa.schema(list(TOKENS_SCHEMA)[::-1])
    refused("tokens", arrow_stream(schema, [columns(TOKENS)]), "the Arrow schema is")


@SIGNALS
def test_a_payload_of_the_other_signal_is_refused(signal: str) -> None:
    other = "logits" if signal == "tokens" else "tokens"
    refused(signal, PAYLOADS[other], "schema")


@SIGNALS
@pytest.mark.parametrize("payload", [b"", b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" + b"x" * 60, b"\x80\x04." * 9])
def test_other_bytes_are_refused(signal: str, payload: bytes) -> None:
    refused(signal, payload)


def test_nulls_are_refused() -> None:
    nullable = pa.schema([field.with_nullable(True) for field in TOKENS_SCHEMA])
    batch = pa.RecordBatch.from_pylist([columns(TOKENS) | {"source_id": None}], schema=nullable)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TOKENS_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=TOKENS_SCHEMA))
    refused("tokens", sink.getvalue().to_pybytes(), "null")


@pytest.mark.parametrize("column", ["key", "source_id", "layer"])
def test_a_string_that_is_not_utf8_is_refused(column: str) -> None:
    payload = arrow_stream(TOKENS_SCHEMA, [columns(TOKENS) | {column: "⟨here⟩"}])
    decode("tokens", payload)
    broken = payload.replace("⟨here⟩".encode(), b"\xff" * 10)
    refused("tokens", broken, f"column {column} is not UTF-8")


def test_rows_of_different_sizes_round_trip() -> None:
    """The reader reuses the layout of the first."""
    schema = pa.schema([pa.field(name, kind(), nullable=False) for name, kind in (("a", pa.string), ("b", pa.binary))])
    reader = RowReader(schema)
    for text, data in (("", b""), ("⟨5⟩", b"\0\xff"), ("x" * 1000, b""), ("", b"y" * 100_000)):
        row = {"a": text, "b": data}
        for payload in (write_row(schema, row), arrow_stream(schema, [row])):
            found = reader.read(payload)
            assert (found.text("a"), bytes(found.binary("b"))) == (text, data)
            assert columns(payload) == row


@pytest.mark.parametrize("size", [*range(20), 4096, 100_003])
def test_a_binary_is_written_as_pyarrow_writes_it(size: int) -> None:
    value = np.random.default_rng(size).bytes(size)
    assert write_binary(SIGNAL_SCHEMA, value) == write_row(SIGNAL_SCHEMA, {"frame": value})


def test_a_binary_is_a_view_of_the_payload() -> None:
    payload = write_row(SIGNAL_SCHEMA, {"frame": b"12345"})
    assert RowReader(SIGNAL_SCHEMA).read(payload).binary("frame").obj is payload


FRAME = bytes(12345)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((1, 12345), "column frame: offsets 1 and 12345, wanted 0 and its end"),
        ((0, -1), "column frame: offsets 0 and -1, wanted 0 and its end"),
        ((0, 12346 + 64), "column frame: 12410 bytes wanted from a buffer of 12345 bytes"),
        ((0, 2**31 - 1), "column frame: 2147483647 bytes wanted"),
    ],
)
def test_offsets_of_more_than_one_value_are_refused(offsets: tuple[int, int], message: str) -> None:
    payload = bytearray(write_row(SIGNAL_SCHEMA, {"frame": FRAME}))
    struct.pack_into("<2i", payload, payload.rindex(struct.pack("<2i", 0, 12345)), *offsets)
    row = RowReader(SIGNAL_SCHEMA).read(bytes(payload))
    with pytest.raises(CorruptCacheError, match=message):
        row.binary("frame")


def test_another_number_of_entries_is_refused() -> None:
    payload = write_row(SIGNAL_SCHEMA, {"frame": FRAME})
    node = struct.pack("<2q", 1, 0)  # a column's length and its number of nulls
    assert payload.count(node) == 1
    row = RowReader(SIGNAL_SCHEMA).read(payload.replace(node, struct.pack("<2q", 2, 0)))
    with pytest.raises(CorruptCacheError, match="column frame has 2 entries, wanted 1"):
        row.binary("frame")


def _survives(signal: str, payload: bytes) -> None:
    with contextlib.suppress(CorruptCacheError):
        decode(signal, payload)  # a changed value is the checksum's to find; a changed structure is found here


@SIGNALS
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_changed_bytes_raise_nothing_but_corrupt_cache_error(signal: str, data: st.DataObject) -> None:
    payload = bytearray(PAYLOADS[signal])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    _survives(signal, bytes(payload))


@SIGNALS
@pytest.mark.parametrize("value", [0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 24])
def test_huge_lengths_and_offsets_anywhere_allocate_nothing(signal: str, value: int) -> None:
    """Every aligned word of a payload in turn: sizes, counts, offsets, vtables."""
    tracemalloc.start()
    try:
        for place in range(0, len(PAYLOADS[signal]) - 4, 4):
            payload = bytearray(PAYLOADS[signal])
            struct.pack_into("<I", payload, place, value)
            _survives(signal, bytes(payload))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
