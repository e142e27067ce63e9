"""Bundles of several samples: writing, reading, refusing invalid ones."""

import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import SIGNAL_SCHEMA, TOKENS_SCHEMA
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream
from support.synthetic import token_sample
from teacher_cache.codec.bundles import (
    LEAST_SAMPLES,
    MOST_MEAN_TOKENS,
    MOST_SAMPLES,
    MOST_TOKENS,
    are_short,
    as_record,
    bundle_bytes,
    bundle_places,
    bundle_sizes,
    is_bundle,
    write_bundle,
)
from teacher_cache.codec.message import write_row
from teacher_cache.codec.tokens import decode_tokens, encode_tokens

RECORDS = st.lists(st.binary(max_size=300), min_size=1, max_size=40)


@given(RECORDS)
@settings(max_examples=100, deadline=None)
def test_arrow_reads_the_records_and_their_offsets_are_right(records: list[bytes]) -> None:
    bundle = write_bundle(records)
    assert pa.ipc.open_stream(bundle.content).read_all().to_pydict() == {"frame": records}
    places = bundle_places(bundle.content)
    assert [bundle.content[start : start + size] for start, size in places] == records
    assert bundle.starts == [start for start, _ in places]
    assert bundle_bytes(map(len, records)) == len(bundle.content)


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=2000))
@settings(max_examples=100, deadline=None)
def test_bundles_hold_all_samples_and_are_bounded(num_tokens: list[int]) -> None:
    sizes = bundle_sizes(num_tokens)
    assert sum(sizes) == len(num_tokens)
    first = 0
    for size in sizes:
        tokens = num_tokens[first : first + size]
        assert 1 <= size <= MOST_SAMPLES
        assert size == 1 or sum(tokens) <= MOST_TOKENS
        first += size


def test_shards_of_many_short_samples_are_bundled() -> None:
    assert are_short([MOST_MEAN_TOKENS - 1] * LEAST_SAMPLES)
    assert not are_short([MOST_MEAN_TOKENS] * LEAST_SAMPLES)
    assert not are_short([1] * (LEAST_SAMPLES - 1))
    assert are_short([MOST_MEAN_TOKENS * 20] + [1] * 200)


def test_a_payload_converts_to_a_record_of_the_same_sample() -> None:
    sample = token_sample([7, 70_000, 9], layer="code", source_id="a.jsonl#3")
    record = as_record("tokens", encode_tokens(sample))
    assert decode_tokens(record, 3, 2**24).source_id == sample.source_id
    assert as_record("tokens", record) is record
    frame = b"\x28\xb5\x2f\xfd and so on"
    assert as_record("logits", write_row(SIGNAL_SCHEMA, {"frame": frame})) == frame
    assert as_record("logits", frame) is frame


def test_bundles_are_told_from_single_samples() -> None:
    assert is_bundle(write_bundle([b"x"]).content)
    assert not is_bundle(encode_tokens(token_sample([1, 2])))
    with pytest.raises(CorruptCacheError, match="not a valid Arrow stream"):
        is_bundle(b"PAR1")


GOOD = write_bundle([b"abc", b"", b"defgh"]).content
OFFSETS = struct.pack("<4i", 0, 3, 3, 8)


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [
        ((1, 3, 3, 8), "do not increase"),
        ((0, 3, 2, 8), "do not increase"),
        ((0, -1, 3, 8), "do not increase"),
        ((0, 3, 3, 9), "do not increase|its end"),
        ((0, 3, 3, 2**31 - 1), "its end"),
    ],
)
def test_offsets_outside_the_column_are_refused(offsets: tuple[int, ...], problem: str) -> None:
    assert GOOD.count(OFFSETS) == 1
    with pytest.raises(CorruptCacheError, match=problem):
        bundle_places(GOOD.replace(OFFSETS, struct.pack("<4i", *offsets)))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_stay_inside(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        places = bundle_places(bytes(changed))
    except CorruptCacheError:
        return
    assert all(start >= 0 and size >= 0 and start + size <= len(changed) for start, size in places)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[:-8],
        GOOD + b"x",
        arrow_stream(SIGNAL_SCHEMA, [{"frame": b"abc"}], compression="zstd"),
        arrow_stream(SIGNAL_SCHEMA, []),
        arrow_stream(
            TOKENS_SCHEMA, [dict.fromkeys(("key", "source_id", "layer"), "") | {"frame": b"", "text_frame": b""}]
        ),
        arrow_stream(pa.schema([pa.field("frame", pa.binary())]), [{"frame": None}]),
    ],
    ids=["nothing", "cut", "longer", "compressed", "empty", "another schema", "nulls"],
)
def test_other_streams_are_refused(content: bytes) -> None:
    with pytest.raises(CorruptCacheError):
        bundle_places(content)
