import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.corpus.clean import clean_text

any_text = st.text(alphabet=st.characters() | st.sampled_from("\r\n\t\u200b\u200d\ufeff\u0301e\x00\u1100\u1161"))


@given(any_text)
def test_cleaning_twice_changes_nothing(text):
    once = clean_text(text)
    assert clean_text(once) == once


@given(any_text)
def test_result_is_nfc_and_encodable_without_control_characters(text):
    cleaned = clean_text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode("utf-8")
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\n\t"]


@given(st.text(alphabet="abc XYZ日本語éßđ😀\n\t.,"))
def test_ordinary_text_is_kept(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("answer\u200b", "answer"),
        ("\ufeffstart", "start"),
        ("a\r\nb\rc\n\td", "a\nb\nc\n\td"),
        ("e\u0301", "é"),
        ("e\u200b\u0301", "é"),  # stripping comes before normalising
        ("nul\x00 bell\x07 del\x7f c1\x85", "nul bell del c1"),
        ("soft\u00adhyphen \u202eflipped\u202c \u2066isolated\u2069", "softhyphen flipped isolated"),
        ("heart ❤\ufe0f", "heart ❤\ufe0f"),  # variation selectors stay
        ("lone \ud800 surrogate", "lone  surrogate"),
    ],
)
def test_examples(text, wanted):
    assert clean_text(text) == wanted
