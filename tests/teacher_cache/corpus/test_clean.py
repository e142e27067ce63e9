import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.corpus.clean import clean_text

FLAG = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"  # England
SPECIAL = (
    "\r\n\t\u200b\u200c\u200d\u200e\u202e\ufeff\u0301e\x00\u1100\u1161سक्🏴👩❤\ufe0f\U000e0067\U000e007f\u180e\u1820ก"
)
any_text = st.text(alphabet=st.characters() | st.sampled_from(SPECIAL))


@given(any_text | st.text(alphabet=SPECIAL, max_size=12))
def test_cleaning_twice_changes_nothing(text):
    once = clean_text(text)
    assert clean_text(once) == once


@given(any_text)
def test_result_is_nfc_and_encodable_without_control_characters(text):
    cleaned = clean_text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode("utf-8")
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert "\ufeff" not in cleaned


@given(st.text(alphabet="abc XYZ日本語éßđ😀\n\t.,"))
def test_ordinary_text_is_kept(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian: I want
        "کتاب\u200cها و PDF\u200cها، ۱۰\u200cتا",  # plurals, also of a Latin word and of digits
        "ه\u200d.ش.",  # an abbreviation whose letter keeps its joined form
        "क्\u200dष and क्\u200cष",  # Devanagari: half form, explicit virama
        "ශ්\u200dරී ලංකා",  # Sri Lanka
        "അവന്\u200d",  # Malayalam: a chillu at the end of a word
        "ភាសា\u200bខ្មែរ",  # Khmer words
        "שלום\u200f!",  # a mark that puts the exclamation mark on the right side
        "ᠬᠠ\u180eᠠ",
        "👨\u200d👩\u200d👧",
        "👩🏽\u200d💻 👁️\u200d🗨️ 🏳️\u200d🌈 🏴\u200d☠️ ❤️\u200d🔥 🐈\u200d⬛ 🧑🏻\u200d❤️\u200d💋\u200d🧑🏼",
        FLAG,
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland
        "heart ❤\ufe0f, text ❤\ufe0e, keycap 1\ufe0f\u20e3",
    ],
)
def test_meaningful_format_characters_are_kept(text):
    assert clean_text(text) == text
    assert clean_text(f"\ufeff{text}\u200b\x00") == text  # whatever surrounds it


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
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("zero\u200bwidth\u200cin\u200dLatin", "zerowidthinLatin"),
        ("سلام\u200c \u200cسلام", "سلام سلام"),  # next to a space a non-joiner separates nothing
        ("می\u200c\u200cخواهم", "می\u200cخواهم"),  # a run counts as one
        ("می\ufeff\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d", "👩"),
        ("\u200d👩", "👩"),
        ("👩\u200dx", "👩x"),
        ("tags\U000e0067\U000e007f without a flag", "tags without a flag"),
        ("🏴\U000e0067\U000e0062", "🏴"),  # not closed
        (FLAG + "\U000e0067", FLAG),
        ("שלום\u200f!\nplain\u200f", "שלום\u200f!\nplain"),  # a line of its own
    ],
)
def test_meaningless_control_characters_are_removed(text, wanted):
    assert clean_text(text) == wanted


def test_a_clean_text_is_not_copied():
    for text in ("plain ascii\n" * 99, "日本語 é 👨\ufe0f" * 99):
        assert clean_text(text) is text
