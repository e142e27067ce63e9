import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError, UserError
from support.forge import arrow_stream, claiming_frame, columns, sections, with_sections
from support.synthetic import token_sample
from teacher_cache.codec.message import write_row
from teacher_cache.codec.sections import Sections
from teacher_cache.codec.tokens import N_SECTIONS, decode_tokens, encode_tokens, fill_columns, training_frame
from teacher_cache.records import TokenSample


@st.composite
def samples(draw: st.DrawFn) -> TokenSample:
    text = draw(st.text(max_size=40))
    n_bytes = len(text.encode())
    spans = draw(st.lists(st.tuples(st.integers(0, n_bytes), st.integers(0, n_bytes)), min_size=1, max_size=20))
    mask = draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
    ids = draw(st.lists(st.integers(0, 2**24 - 1), min_size=len(spans), max_size=len(spans)))
    return TokenSample(
        key=draw(st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True)),
        source_id=draw(st.text(max_size=10)),
        layer=draw(st.text(max_size=10)),
        text=text,
        input_ids=np.array(ids, np.uint32),
        loss_mask=np.array([*mask[:-1], False]),
        byte_start=np.array([min(span) for span in spans], np.uint32),
        byte_end=np.array([max(span) for span in spans], np.uint32),
        chat=draw(st.binary(max_size=40)),
    )


@given(samples())
@settings(max_examples=100, deadline=None)
def test_round_trip(sample: TokenSample) -> None:
    payload = encode_tokens(sample)
    for num_tokens in (len(sample.input_ids), None):
        found = decode_tokens(payload, num_tokens, 2**24)
        for name, wanted in vars(sample).items():
            np.testing.assert_array_equal(getattr(found, name), wanted)
            assert getattr(getattr(found, name), "dtype", None) == getattr(wanted, "dtype", None)


def test_the_columns_are_plain_arrow_and_the_frames_sections() -> None:
    payload = encode_tokens(replace(token_sample([5, 70_000, 6]), byte_start=np.array([0, 6, 15], np.uint32)))
    row, text = columns(payload), "⟨5⟩⟨70000⟩⟨6⟩".encode()
    assert list(row) == TOKENS_SCHEMA.names
    assert (row["source_id"], row["layer"]) == ("synthetic#0", "base")
    planes_of_ids = bytes([5, 70_000 & 255, 6, 0, 70_000 >> 8 & 255, 0, 0, 1, 0])
    assert sections(payload) == [planes_of_ids, bytes([0b011])]
    gaps = bytes([0, 255, 256 - 3] + [0, 255, 255] * 3)  # tokens that overlap: by 1 and 3 bytes
    assert sections(payload, "text_frame") == [gaps, bytes([7, 12, 10] + [0] * 9), text]


def test_the_record_of_a_chat_is_a_frame_after_that_of_the_text() -> None:
    plain, chat = (encode_tokens(replace(token_sample([5, 6]), chat=chat)) for chat in (b"", b'{"messages":[]}'))
    text_frame = columns(plain)["text_frame"]
    assert columns(chat)["text_frame"].startswith(text_frame)
    assert zstandard.decompress(columns(chat)["text_frame"][len(text_frame) :]) == b'{"messages":[]}'


@pytest.mark.parametrize("ending", [b"x", zstandard.compress(b"a") + b"x", zstandard.compress(b"a")[:-1]])
def test_what_follows_the_text_is_one_frame_or_nothing(ending: bytes) -> None:
    row = columns(encode_tokens(token_sample([5, 6])))
    payload = write_row(TOKENS_SCHEMA, {**row, "text_frame": row["text_frame"] + ending})
    with pytest.raises(CorruptCacheError, match="zstd frame"):
        decode_tokens(payload, 2, 300)


SAMPLE = token_sample([5, 6, 7])
PAYLOAD = encode_tokens(SAMPLE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss_mask": np.array([True, True, True])},
            "last row of the loss mask, which no token follows: 2, wanted 1",
        ),
        ({"byte_end": np.array([7, 14, 22], np.uint32)}, "a token's byte span begins before or ends beyond"),
        ({"byte_start": np.array([0, 15, 14], np.uint32)}, "a token's byte span begins before or ends beyond"),
        ({"input_ids": np.array([5, 6, 300], np.uint32)}, "largest token id: 300, wanted 299"),
        (
            {name: getattr(SAMPLE, name)[:0] for name in ("input_ids", "loss_mask", "byte_start", "byte_end")},
            "bytes of token ids: 0",
        ),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    payload = encode_tokens(replace(SAMPLE, **changes))
    for num_tokens in (3, None):
        with pytest.raises(CorruptCacheError, match=message):
            decode_tokens(payload, num_tokens, 300)


MINUS_ONE = bytes([255, 0, 0] * 4)
WRONG = {
    "ids of two tokens": ("frame", {0: bytes(6)}, "bytes of token ids: 6|last row of the loss mask"),
    "part of an id": ("frame", {0: bytes(8)}, "bytes of token ids: 8"),
    "no ids": ("frame", {0: b"", 1: b""}, "bytes of token ids: 0"),
    "a mask beyond the sequence": ("frame", {1: bytes([0b1001])}, "a position: 3, wanted 2"),
    "a mask far beyond it": ("frame", {1: bytes([1, 1])}, "position|a zstd frame declares"),
    "gaps of two tokens": ("text_frame", {0: bytes(8)}, "section 0: 8 bytes, wanted 4 "),
    "lengths of four tokens": ("text_frame", {1: bytes(16)}, "section 1: 16 bytes, wanted 4 "),
    "a token before the text": ("text_frame", {0: MINUS_ONE}, "a token's byte span begins before"),
    "lengths that add up to too much": ("text_frame", {1: b"\xff" * 12}, "a token's byte span begins before or ends"),
    "no text": ("text_frame", {2: b""}, "ends beyond the text of 0 bytes"),
    "text that is not UTF-8": ("text_frame", {2: b"\xff" * 21}, "the text is not UTF-8"),
    "more text than three tokens can have": ("text_frame", {2: bytes(70_000)}, "a zstd frame declares"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_inconsistent_payload_is_refused(name: str) -> None:
    frame, changed, message = WRONG[name]
    payload = with_sections(PAYLOAD, changed, frame)
    for num_tokens in (3, None):
        assert decode_tokens(with_sections(PAYLOAD, {}, frame), num_tokens, 300).text == SAMPLE.text
        with pytest.raises(CorruptCacheError, match=message):
            decode_tokens(payload, num_tokens, 300)


@pytest.mark.parametrize("frame", ["frame", "text_frame"])
@pytest.mark.parametrize("num_tokens", [3, None])
def test_a_frame_that_claims_too_much_is_refused_without_allocating(frame: str, num_tokens: int | None) -> None:
    payload = arrow_stream(TOKENS_SCHEMA, [columns(PAYLOAD) | {frame: claiming_frame(1 << 40)}])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match="a zstd frame declares 1099511627776 bytes"):
            decode_tokens(payload, num_tokens, 300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("num_tokens", [0, 2, 4, 10**9])
def test_another_number_of_tokens_is_refused(num_tokens: int) -> None:
    with pytest.raises(CorruptCacheError, match=r"bytes of token ids|a zstd frame declares"):
        decode_tokens(PAYLOAD, num_tokens, 300)


def test_training_reads_nothing_of_the_text() -> None:
    payload = arrow_stream(TOKENS_SCHEMA, [columns(PAYLOAD) | {"text_frame": b"not zstd"}])
    frame = training_frame(payload, 3)
    sections = Sections(frame.data, N_SECTIONS, frame.content_bytes)
    input_ids, loss_mask = np.empty(3, np.int64), np.empty(3, np.bool_)
    fill_columns(sections.content, sections.starts, 300, input_ids, loss_mask)
    np.testing.assert_array_equal(input_ids, SAMPLE.input_ids)
    np.testing.assert_array_equal(loss_mask, SAMPLE.loss_mask)
    for num_tokens in (0, 1):
        with pytest.raises(CorruptCacheError, match="a zstd frame declares"):
            training_frame(payload, num_tokens)
    with pytest.raises(CorruptCacheError, match="broken zstd frame"):
        decode_tokens(payload, 3, 300)


def test_a_row_written_by_another_arrow_writer_is_read() -> None:
    payload = arrow_stream(TOKENS_SCHEMA, [columns(PAYLOAD)])
    assert decode_tokens(payload, 3, 300).text == SAMPLE.text


def test_a_text_too_long_for_its_tokens_is_not_written() -> None:
    spans = {"byte_start": np.array([0, 5, 9], np.uint32), "byte_end": np.array([5, 9, 9], np.uint32)}
    most = (1 << 16) + 3 * 1024
    assert decode_tokens(encode_tokens(replace(SAMPLE, text="x" * most, **spans)), 3, 300).text == "x" * most
    with pytest.raises(UserError, match="68609 bytes of text in 3 tokens"):
        encode_tokens(replace(SAMPLE, text="x" * (most + 1), **spans))
