"""Text from bytes that may not be UTF-8: each token keeps its own span."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.corpus.token_spans import TokenSpans
from tools.bridges.spelling import readable

pieces = st.lists(st.binary(max_size=3) | st.sampled_from(["é".encode(), b"\xf0\x9f", b"\x98\x80", b"a"]), max_size=12)


@given(pieces=pieces)
def test_the_text_is_what_python_decodes_and_spans_tile_it(pieces: list[bytes]) -> None:
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = ends - np.array([len(piece) for piece in pieces], np.int64)
    spans = TokenSpans(b"".join(pieces), np.zeros(len(pieces), np.uint32), starts, ends)
    text, start, end = readable(spans)
    data = text.encode()
    whole = spans.data.decode("utf-8", "surrogateescape")
    assert text == "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in whole)
    assert np.array_equal(end[:-1], start[1:])
    assert len(pieces) == 0 or (start[0], end[-1]) == (0, len(data))
    for piece, a, b in zip(pieces, start, end, strict=True):
        if data[a:b].isascii():
            assert data[a:b] == piece


def test_a_character_split_over_tokens_keeps_its_bytes() -> None:
    data = "é😀".encode() + b"\xf0\x9f"
    spans = TokenSpans(data, np.zeros(4, np.uint32), np.array([0, 1, 4, 6]), np.array([1, 4, 6, 8]))
    text, start, end = readable(spans)
    assert text == "é😀\ufffd\ufffd"
    assert start.tolist() == [0, 1, 4, 6]
    assert end.tolist() == [1, 4, 6, 12]
