"""Characters of a token, and the check of the tokenizer."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from schemas.manifest import TokenizerInfo
from support.models import tiny_tokenizer
from support.worded import worded_sample
from teacher_cache.tokenizer import describe_tokenizer
from tools.report.token_text import MOST_CHARACTERS, Spelling, load_tokenizer, token_text


@given(st.text(max_size=30), st.lists(st.integers(0, 120), max_size=8))
def test_the_tokens_of_a_text_make_the_text(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    spans = list(itertools.pairwise(places))
    found = [token_text(data, start, stop) for start, stop in spans]
    assert "".join(shown for shown, _ in found) == text
    for (start, stop), (shown, cut) in zip(spans, found, strict=True):
        if cut:
            assert bytes.fromhex(cut) == data[start:stop][:8]
            assert shown.encode() != data[start:stop]
        else:
            assert shown.encode() == data[start:stop]


def test_long_tokens_are_cut() -> None:
    assert token_text("é".encode() * 5000, 0, 10_000) == ("é" * MOST_CHARACTERS, "")


def test_spellings_come_from_the_texts() -> None:
    party = "🎉".encode()
    spelling = Spelling(50)
    spelling.add(worded_sample(["a", " b", party[:2], party[2:], ""], ids=[3, 4, 5, 6, 7]))
    spelling.add(worded_sample(["other", "c"], ids=[3, 8]))
    assert [spelling[index] for index in (3, 4, 5, 6, 7, 8, 9)] == ["a", " b", None, None, None, "c", None]


def test_a_tokenizer_spells_everything(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    spelling = Spelling(384, load_tokenizer(str(tmp_path), describe_tokenizer(tokenizer)))
    index = tokenizer.convert_tokens_to_ids("Ġreturn")
    assert spelling[index] == " return"
    with pytest.raises(UserError, match=f"fingerprint .* wanted the cache's, {'c' * 64}"):
        load_tokenizer(str(tmp_path), TokenizerInfo(fingerprint="c" * 64, vocab_size=384))
