"""Rows follow from the text, whatever the tokenization."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cache_config import (
    CODE_KEYWORDS,
    AttentionCapture,
    CaptureConfig,
    DrawsCapture,
    FinalCapture,
    HiddenCapture,
    LogitsCapture,
    Stride,
)
from teacher_cache.records import TokenSample
from teacher_cache.signals.select_positions import keyword_starts, select_rows, to_request


def sample_of(pieces: list[str], masked: tuple[int, ...] = ()) -> TokenSample:
    """A sample whose tokens are these pieces of text; the rows ``masked`` are outside the loss mask."""
    ends = np.cumsum([len(piece.encode()) for piece in pieces])
    loss_mask = np.ones(len(pieces), bool)
    loss_mask[[-1, *masked]] = False
    return TokenSample(
        key="0" * 32,
        source_id="",
        layer="",
        text="".join(pieces),
        input_ids=np.zeros(len(pieces), np.uint32),
        loss_mask=loss_mask,
        byte_start=np.concatenate([[0], ends[:-1]]).astype(np.uint32),
        byte_end=ends.astype(np.uint32),
    )


def keyword_rows(pieces: list[str], masked: tuple[int, ...] = ()) -> list[int]:
    return select_rows(sample_of(pieces, masked), "keywords", CODE_KEYWORDS).tolist()


def test_keywords_are_the_rows_before_the_token_they_begin_in() -> None:
    assert keyword_rows(["x = 1\n", "def", " f", "():", "\n", "    ret", "urn", " x"]) == [0, 4]


@pytest.mark.parametrize("pieces", [["a ", "if", " b"], ["a", " if", " b"], ["a", " i", "f b"], ["a", " if b"]])
def test_leading_blanks_and_splits_do_not_matter(pieces: list[str]) -> None:
    assert keyword_rows(pieces) == [0]


def test_only_whole_words_count() -> None:
    assert keyword_rows(["x", "define", " xif", " if_", " éif", " ifé", " for1"]) == []
    assert keyword_rows(["x", " (if", ")"]) == [0]


def test_characters_of_several_bytes_before_a_keyword() -> None:
    assert keyword_rows(["ü€", "𝄞 ", "for", " i ", "in", " ü"]) == [1, 3]


def test_a_keyword_in_the_first_token_has_no_row_and_masked_rows_are_left_out() -> None:
    assert keyword_rows(["def", " f", " if", " g", " for", " h"]) == [1, 3]
    assert keyword_rows(["def", " f", " if", " g", " for", " h"], masked=(1,)) == [3]


def test_two_keywords_in_one_token_are_one_row() -> None:
    assert keyword_rows(["x", " not in", " y"]) == [0]


def test_tokens_without_text_are_passed_over() -> None:
    assert keyword_rows(["x", "", " if", "", " y"]) == [1]


def test_strides_loss_mask_and_all() -> None:
    sample = sample_of(["a"] * 7, masked=(0, 3))
    assert select_rows(sample, "all", []).tolist() == list(range(7))
    assert select_rows(sample, "loss_mask", []).tolist() == [1, 2, 4, 5]
    assert select_rows(sample, Stride(every=3), []).tolist() == [0, 3, 6]
    for policy in ("all", "loss_mask", "keywords", Stride(every=2)):
        assert select_rows(sample, policy, CODE_KEYWORDS).dtype == np.int32


def test_requests_hold_the_configured_rows() -> None:
    sample = sample_of(["x", " if", " y"], masked=(1,))
    least = to_request(sample, CaptureConfig(draws=DrawsCapture()))
    assert least.logits_positions.tolist() == [0], "the rows that count, of draws too"
    assert least.side_positions.keys() == {"draws"}
    assert least.positions("draws").tolist() == [0]
    capture = CaptureConfig(
        logits=LogitsCapture(positions="all"),
        hidden=HiddenCapture(positions=Stride(every=2)),
        attention=AttentionCapture(),
        final=FinalCapture(),
    )
    most = to_request(sample, capture)
    assert most.logits_positions.tolist() == [0, 1, 2]
    assert most.positions("hidden").tolist() == [0, 2]
    assert most.positions("attention").tolist() == most.positions("final").tolist() == [0]
    assert most.input_ids is sample.input_ids


@given(text=st.text(st.sampled_from(list("if or_é𝄞 \n(")), max_size=60))
def test_offsets_count_bytes(text: str) -> None:
    found = [text.encode()[start:] for start in keyword_starts(text, ["if", "or"])]
    assert [rest.decode()[:2] for rest in found] == re.findall(r"\b(?:if|or)\b", text)


def test_keywords_of_a_chat_are_those_of_the_assistant() -> None:
    sample = sample_of(["say", " if", " ok", " if", " done"])
    sample = replace(sample, loss_mask=np.array([False, False, True, True, False]))
    assert select_rows(sample, "keywords", CODE_KEYWORDS).tolist() == [2]
