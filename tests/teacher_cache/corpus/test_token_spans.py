import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.corpus.token_spans import ByteTokenizer, TokenSpans, added_around, cut

mixed_text = st.text(
    alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 日本語😀é\u0301👩\u200d\n▁")
)


def no_fallback(monkeypatch):
    def fail(self, text, data):
        raise AssertionError(f"fell back to character spans on {text!r}")

    monkeypatch.setattr(ByteTokenizer, "_spans_by_characters", fail)


@pytest.fixture(scope="module")
def encode(byte_level):
    tokenizer = ByteTokenizer(byte_level)
    return lambda text: tokenizer.encode([text])[0]


@given(text=mixed_text)
def test_byte_level_spans_tile_the_text(encode, text):
    spans = encode(text)
    assert spans.data == text.encode()
    assert np.array_equal(spans.start, np.concatenate([[0], spans.end[:-1]])[: len(spans.ids)])
    assert (spans.end[-1] if len(spans.ids) else 0) == len(spans.data)


@given(text=mixed_text)
def test_byte_level_spans_hold_each_tokens_own_bytes(encode, byte_level, text):
    spans = encode(text)
    for token_id, start, end in zip(spans.ids.tolist(), spans.start, spans.end, strict=True):
        own = byte_level.decode([token_id]).encode()  # exact for tokens of whole characters
        if b"\xef\xbf\xbd" not in own:
            assert spans.data[start:end] == own
        else:
            assert spans.data[start:end].decode(errors="replace").encode() == own


def test_a_split_character_has_one_byte_a_token(byte_level, monkeypatch):
    no_fallback(monkeypatch)
    spans = ByteTokenizer(byte_level).encode(["a𝄞"])[0]  # U+1D11E, four bytes, not in the training text
    pieces = [spans.data[a:b] for a, b in zip(spans.start, spans.end, strict=True)]
    assert b"".join(pieces) == "a𝄞".encode()
    assert len(pieces) >= 4


def test_sentencepiece_byte_fallback_is_exact(sentencepiece, monkeypatch):
    no_fallback(monkeypatch)
    spans = ByteTokenizer(sentencepiece).encode(["the 日 😀 fox"])[0]
    tokens = sentencepiece.convert_ids_to_tokens(spans.ids.tolist())
    covered = {
        token: spans.data[a:b] for token, a, b in zip(tokens, spans.start, spans.end, strict=True) if len(token) == 6
    }
    assert covered["<0xE6>"] == b"\xe6"
    assert covered["<0x98>"] == b"\x98"
    assert b"".join(spans.data[a:b] for a, b in zip(spans.start, spans.end, strict=True)) == spans.data


@pytest.mark.parametrize("text", ["the fox", " the fox", "  two", "日", ""])
def test_sentencepiece_leading_space_is_not_in_the_text(sentencepiece, text, monkeypatch):
    no_fallback(monkeypatch)
    spans = ByteTokenizer(sentencepiece).encode([text])[0]
    assert b"".join(spans.data[a:b] for a, b in zip(spans.start, spans.end, strict=True)) == text.encode()
    if text:
        assert (spans.start[0], spans.end[-1]) == (0, len(spans.data))


@given(text=mixed_text)
def test_sentencepiece_spans_cover_the_text_in_order(sentencepiece, text):
    spans = ByteTokenizer(sentencepiece).encode([text])[0]  # literal ▁ takes the character spans
    assert np.all(spans.start <= spans.end)
    assert np.all(np.diff(spans.start) >= 0)
    assert np.all(np.diff(spans.end) >= 0)
    assert set(range(len(spans.data))) == {
        byte for a, b in zip(spans.start, spans.end, strict=True) for byte in range(a, b)
    }


def test_normaliser_falls_back_to_character_spans(lower_case):
    text = "THE Fox 日𝄞 DEF"
    spans = ByteTokenizer(lower_case).encode([text])[0]
    pieces = [spans.data[a:b].decode() for a, b in zip(spans.start, spans.end, strict=True)]  # whole characters
    assert "".join(lower_case.decode(spans.ids.tolist())) == text.lower()
    assert pieces[0].strip() == text[: len(pieces[0])].strip()
    assert "𝄞" in pieces  # each token of the split character has its whole span
    assert spans.end[-1] == len(spans.data)


def test_special_tokens_in_the_text_cover_their_name(byte_level):
    spans = ByteTokenizer(byte_level).encode(["hi<|im_end|>\n"])[0]
    at = spans.ids.tolist().index(byte_level.eos_token_id)
    assert spans.data[spans.start[at] : spans.end[at]] == b"<|im_end|>"


def test_added_around(byte_level, sentencepiece):
    assert added_around(byte_level) == ([], [])
    assert added_around(sentencepiece) == ([1], [2])


@settings(max_examples=200)
@given(text=mixed_text, size=st.integers(1, 12))
def test_cut_is_consecutive_between_characters_and_maximal(encode, text, size):
    spans = encode(text)
    pieces = cut(spans, size)
    assert [begin for begin, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
    assert (pieces[-1][1] if pieces else 0) == len(spans.ids)
    starts = np.append(spans.start, len(spans.data))

    def is_border(token):
        try:
            spans.data[: starts[token]].decode()
        except UnicodeDecodeError:
            return False
        return True

    for begin, stop in pieces:
        assert is_border(stop)
        later = range(stop + 1, min(begin + size, len(spans.ids)) + 1)
        assert not any(is_border(token) for token in later)
        assert stop - begin <= size or not any(is_border(token) for token in range(begin + 1, stop))


def test_cut_keeps_overlapping_character_spans_together():
    start, end = np.array([0, 1, 1, 5]), np.array([1, 5, 5, 6])
    spans = TokenSpans("a😀b".encode(), np.zeros(4, dtype=np.uint32), start, end)
    assert cut(spans, 2) == [(0, 1), (1, 3), (3, 4)]


@given(text=mixed_text)
def test_ids_spell_the_text_they_were_made_of(byte_level, text):
    tokenizer = ByteTokenizer(byte_level)
    (wanted,) = tokenizer.encode([text])
    found = tokenizer.spell(wanted.ids.astype(np.int64))
    assert found.data == text.encode()
    for name in ("ids", "start", "end"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_an_unknown_id_spells_nothing(sentencepiece):
    tokenizer = ByteTokenizer(sentencepiece)
    ids = tokenizer.encode(["the 日 fox"])[0].ids.astype(np.int64)
    found = tokenizer.spell(np.concatenate([ids[:1], [10**6], ids[1:]]))
    assert found.data == " the 日 fox".encode()  # SentencePiece puts a space in front
    assert found.start[1] == found.end[1]
