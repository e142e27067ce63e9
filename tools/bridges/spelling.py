"""Text of a data set that has token ids only, spelled byte by byte from its tokenizer's vocabulary."""

import numpy as np

from teacher_cache.corpus.token_spans import TokenSpans

SUBSTITUTE = "\ufffd"
_ESCAPED = (0xDC80, 0xDCFF)  # code points of bytes that are not UTF-8, under `surrogateescape`


def readable(spans: TokenSpans) -> tuple[str, np.ndarray, np.ndarray]:
    """The text, and each token's start and end in its UTF-8 (uint32 [S]).

    A byte outside any character, such as at the end of a truncated sequence, becomes the replacement character.
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
    new = np.empty(len(spans.data) + 1, np.int64)  # new offset of each byte
    new[:-1] = np.repeat(first_after - first_before, before) + np.arange(len(spans.data))
    new[-1] = after.sum()
    text = np.where(lost, ord(SUBSTITUTE), codes).astype("<u4").tobytes().decode("utf-32-le")
    return text, new[spans.start].astype(np.uint32), new[spans.end].astype(np.uint32)
