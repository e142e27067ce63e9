from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from support.synthetic import token_sample
from teacher_cache.codec.tokens import decode_tokens, encode_tokens
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


def test_the_columns_are_plain_arrow() -> None:
    row = columns(encode_tokens(token_sample([5, 6])))
    assert list(row) == TOKENS_SCHEMA.names
    assert (row["text"], row["input_ids"], row["byte_end"]) == ("⟨5⟩⟨6⟩", [5, 6], [7, 14])
    assert row["loss_mask"] == [True, False]


SAMPLE = token_sample([5, 6, 7])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_mask": np.array([True, True, True])},
        {"byte_end": np.array([7, 14, 22], np.uint32)},
        {"byte_start": np.array([0, 15, 14], np.uint32)},
        {"byte_start": np.array([0, 7], np.uint32)},
        {"loss_mask": np.array([True, False])},
        {"input_ids": np.array([5, 6], np.uint32)},
        {"input_ids": np.array([5, 6, 300], np.uint32)},
        {name: getattr(SAMPLE, name)[:0] for name in ("input_ids", "loss_mask", "byte_start", "byte_end")},
    ],
)
def test_what_cannot_be_true_is_refused(changes: dict[str, np.ndarray]) -> None:
    decode_tokens(encode_tokens(SAMPLE), 3, 300)
    payload = encode_tokens(replace(SAMPLE, **changes))
    for num_tokens in (3, None):
        with pytest.raises(CorruptCacheError):
            decode_tokens(payload, num_tokens, 300)


@pytest.mark.parametrize("num_tokens", [0, 2, 4, 10**9])
def test_another_number_of_tokens_is_refused(num_tokens: int) -> None:
    with pytest.raises(CorruptCacheError, match="input_ids"):
        decode_tokens(encode_tokens(SAMPLE), num_tokens, 300)


def test_text_that_is_not_utf8_is_refused() -> None:
    payload = encode_tokens(SAMPLE)
    broken = payload.replace("⟨5⟩".encode(), b"\xff" * 7)
    assert broken != payload
    with pytest.raises(CorruptCacheError, match="text"):
        decode_tokens(broken, 3, 300)


def test_a_row_written_by_another_arrow_writer_is_read() -> None:
    payload = arrow_stream(TOKENS_SCHEMA, [columns(encode_tokens(SAMPLE))])
    assert decode_tokens(payload, 3, 300).text == SAMPLE.text
