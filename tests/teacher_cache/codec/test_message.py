"""Untrusted Arrow bytes, by way of the two signals' decoders: read right, or refused with CorruptCacheError."""

import contextlib
import struct
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import LOGITS_SCHEMA, TOKENS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from support.synthetic import logits_sample, token_sample
from teacher_cache.codec.logits import LogitsDecoder, LogitsEncoder
from teacher_cache.codec.permutation import build_code_table
from teacher_cache.codec.tokens import decode_tokens, encode_tokens

IDS = [5, 6, 7, 2, 9]
CAPTURE = LogitsCapture(k=4)
TABLE = build_code_table(np.ones(50))
SAMPLE = token_sample(IDS)
TOKENS = encode_tokens(SAMPLE)
LOGITS = LogitsEncoder(CAPTURE, CodecConfig(), TABLE).encode(
    logits_sample(np.random.default_rng(0).normal(size=(5, 50)), np.array(IDS), CAPTURE)
)
DECODER = LogitsDecoder(CAPTURE, CodecConfig(), TABLE)
PAYLOADS = {"tokens": TOKENS, "logits": LOGITS}
SCHEMAS = {"tokens": TOKENS_SCHEMA, "logits": LOGITS_SCHEMA}
SIGNALS = pytest.mark.parametrize("signal", ["tokens", "logits"])


def decode(signal: str, payload: bytes) -> object:
    return decode_tokens(payload, len(IDS), 50) if signal == "tokens" else DECODER.decode(payload, len(IDS))


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
    """Its buffers declare their own uncompressed sizes, which a hostile file can make as large as it likes."""
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


def _schema_variants(signal: str) -> list[pa.Schema]:
    schema = SCHEMAS[signal]
    last = schema.names[-1]
    kind = pa.list_(pa.float32()) if signal == "tokens" else pa.large_binary()
    return [
        schema.remove(0),
        schema.append(pa.field("more", pa.int32())),
        pa.schema(list(schema)[::-1]),
        schema.set(len(schema) - 1, pa.field(last, kind, nullable=False)),
        schema.set(len(schema) - 1, schema.field(last).with_name("other")),
        schema.set(len(schema) - 1, schema.field(last).with_nullable(True)),
    ]


@SIGNALS
@pytest.mark.parametrize("variant", range(6))
def test_another_schema_is_refused(signal: str, variant: int) -> None:
    row = columns(PAYLOADS[signal])
    row |= {"more": 1, "other": row[list(row)[-1]]}
    refused(signal, arrow_stream(_schema_variants(signal)[variant], [row]), "schema")


@SIGNALS
def test_one_signal_is_not_the_other(signal: str) -> None:
    other = "logits" if signal == "tokens" else "tokens"
    refused(signal, PAYLOADS[other], "schema")


@SIGNALS
@pytest.mark.parametrize("payload", [b"", b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" + b"x" * 60, b"\x80\x04." * 9])
def test_other_bytes_are_refused(signal: str, payload: bytes) -> None:
    refused(signal, payload)


def test_nulls_are_refused() -> None:
    nullable = pa.schema([field.with_nullable(True) for field in TOKENS_SCHEMA])
    batch = pa.RecordBatch.from_pylist([columns(TOKENS) | {"text": None}], schema=nullable)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TOKENS_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=TOKENS_SCHEMA))
    refused("tokens", sink.getvalue().to_pybytes(), "null")


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
