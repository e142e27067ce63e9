"""Records of short sequences hold the same as members of their own; truncated ones are refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError, UserError
from support.synthetic import token_sample
from teacher_cache.codec.token_records import encode_records, to_record
from teacher_cache.codec.tokens import MAX_TOKEN_BYTES, SLACK_BYTES, decode_tokens, encode_tokens, training_frame
from teacher_cache.records import TokenSample
from teacher_cache.token_batch import TokenBatch

SEQUENCES = st.lists(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=30), min_size=1, max_size=20)


def assert_same(found: TokenSample, wanted: TokenSample) -> None:
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
        assert getattr(getattr(found, name), "dtype", None) == getattr(value, "dtype", None)


def sample_of(ids: list[int], mask_seed: int) -> TokenSample:
    sample = token_sample(ids, layer="düne", source_id=f"ö.jsonl#{mask_seed}")
    mask = np.random.default_rng(mask_seed).random(len(ids)) < 0.5
    mask[-1] = False
    return replace(sample, loss_mask=mask, chat=b"{}" * (mask_seed % 3))


@given(SEQUENCES)
@settings(max_examples=100, deadline=None)
def test_records_hold_what_payloads_hold(sequences: list[list[int]]) -> None:
    samples = [sample_of(ids, i) for i, ids in enumerate(sequences)]
    for sample, record in zip(samples, encode_records(TokenBatch.of(samples)), strict=True):
        assert_same(decode_tokens(record, len(sample.input_ids), 2**24), sample)
        assert_same(decode_tokens(record, None, 2**24), sample)
        assert_same(decode_tokens(to_record(encode_tokens(sample)), None, 2**24), sample)


def test_spans_that_overlap_and_leave_gaps() -> None:
    sample = replace(
        token_sample([5, 6, 7]),
        byte_start=np.array([2, 2, 9], np.uint32),
        byte_end=np.array([4, 7, 12], np.uint32),
    )
    assert_same(decode_tokens(next(encode_records(TokenBatch.of([sample]))), 3, 10), sample)


def test_a_text_too_long_for_its_tokens_is_refused_by_name() -> None:
    long = "x" * (SLACK_BYTES + 2 * MAX_TOKEN_BYTES + 1)
    spans = {"byte_start": np.zeros(2, np.uint32), "byte_end": np.array([1, len(long)], np.uint32)}
    sample = replace(token_sample([1, 2], source_id="big.txt#1"), text=long, **spans)
    with pytest.raises(UserError, match=r"big\.txt#1: .* bytes of text in 2 tokens"):
        list(encode_records(TokenBatch.of([token_sample([3]), sample])))


RECORD = next(encode_records(TokenBatch.of([token_sample([5, 6, 7])])))


@pytest.mark.parametrize("cut", [0, 3, 4, 20, len(RECORD) - 1])
def test_a_truncated_record_is_refused(cut: int) -> None:
    with pytest.raises(CorruptCacheError, match=r"record|frame"):
        decode_tokens(RECORD[:cut], 3, 10)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_give_a_sound_sample(data: st.DataObject) -> None:
    changed = bytearray(RECORD)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        sample = decode_tokens(bytes(changed), 3, 10)
    except CorruptCacheError:
        return
    assert len(sample.input_ids) == 3
    assert sample.input_ids.max() < 10
    assert sample.byte_end.max() <= len(sample.text.encode())


def test_training_reads_the_first_frame_alone() -> None:
    frame = training_frame(RECORD, 3)
    assert bytes(frame.data) == RECORD[4 : 4 + len(frame.data)]
    assert frame.content_bytes == 8 + 9 + 1
    with pytest.raises(CorruptCacheError, match="declares 18 bytes"):
        training_frame(RECORD, 1)
