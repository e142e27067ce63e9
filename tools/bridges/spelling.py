"""The text of token ids where a data set has none: what its tokenizer's vocabulary spells, byte by byte."""

import numpy as np

from teacher_cache.corpus.token_spans import TokenSpans

SUBSTITUTE = "\ufffd"
_ESCAPED = (0xDC80, 0xDCFF)  # what bytes that are not UTF-8 become with `surrogateescape`


def readable(spans: TokenSpans) -> tuple[str, np.ndarray, np.ndarray]:
    """The text, and where each token starts and ends in its UTF-8 (uint32 [S]).

    A byte that is no part of a character, as at the end of a sequence that was cut, becomes the replacement character.
    """
    escaped = spans.data.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(escaped.encode("utf-32-le", "surrogatepass"), "<u4")
    lost = (codes >= _ESCAPED[0]) & (codes <= _ESCAPED[1])
    if not lost.any():
        return escaped, spans.start.astype(np.uint32), spans.end.astype(np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800).astype(np.int64) + (codes >= 0x10000)
    before = np.where(lost, 1, widths)
    after = np.where(lost, len(SUBSTITUTE.encode()), widths)
    first_before, first_after = np.cumsum(before) - before, np.cumsum(after) - after
    new = np.empty(len(spans.data) + 1, np.int64)  # place of each byte
    new[:-1] = np.repeat(first_after - first_before, before) + np.arange(len(spans.data))
    new[-1] = after.sum()
    text = np.where(lost, ord(SUBSTITUTE), codes).astype("<u4").tobytes().decode("utf-32-le")
    return text, new[spans.start].astype(np.uint32), new[spans.end].astype(np.uint32)
