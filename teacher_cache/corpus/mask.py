"""Token-level loss mask from the spans of replies."""

from typing import TYPE_CHECKING

import numpy as np

from teacher_cache.corpus.template import Span
from teacher_cache.corpus.token_spans import TokenSpans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReplyMask:
    """Selects the tokens of a chat whose bytes overlap a reply.

    A special token may absorb adjacent white space that belongs to a reply; that alone does not select it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder.items()
        self._stripping = np.array([index for index, token in added if token.lstrip or token.rstrip], dtype=np.uint32)

    def __call__(self, spans: TokenSpans, replies: list[Span]) -> np.ndarray:
        """bool [S], from the byte spans of the replies."""
        start, end = self._without_blanks(spans)
        inside = np.zeros(len(start), dtype=bool)
        for first, last in replies:
            inside |= (start < last) & (end > first)
        return inside

    def _without_blanks(self, spans: TokenSpans) -> tuple[np.ndarray, np.ndarray]:
        start, end = spans.start.copy(), spans.end.copy()
        for t in np.flatnonzero(np.isin(spans.ids, self._stripping)):
            text = spans.data[start[t] : end[t]].decode("utf-8", "replace")
            end[t] -= len(text.encode()) - len(text.rstrip().encode())
            start[t] += len(text.encode()) - len(text.lstrip().encode())
        return start, end


def in_bytes(text: str, spans: list[Span]) -> list[Span]:
    """Convert ascending character spans of ``text`` to byte spans of its UTF-8."""
    found = []
    at = length = 0
    for start, stop in spans:
        length += len(text[at:start].encode("utf-8"))
        size = len(text[start:stop].encode("utf-8"))
        found.append((length, length + size))
        at, length = stop, length + size
    return found
