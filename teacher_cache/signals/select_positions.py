"""Select the rows of a sequence that a signal is stored at.

Row t predicts token t + 1. The rows of ``keywords`` are those that *predict* a keyword: the row before the token in
which the keyword begins. Keywords are matched in the text at word boundaries, so neither a tokenizer's leading blanks
nor words of several tokens matter.
"""

import itertools
import re

import numpy as np

from schemas.cache_config import CaptureConfig, Positions, Stride
from teacher_cache.records import Request, TokenSample


def select_rows(sample: TokenSample, positions: Positions, keywords: list[str]) -> np.ndarray:
    """Row numbers, int32 [P], ascending. ``keywords``: rows of the loss mask that predict the start of a keyword."""
    n = len(sample.input_ids)
    if isinstance(positions, Stride):
        return np.arange(0, n, positions.every, dtype=np.int32)
    if positions == "all":
        return np.arange(n, dtype=np.int32)
    if positions == "loss_mask":
        return np.flatnonzero(sample.loss_mask).astype(np.int32)
    rows = np.unique(_tokens_at(sample, keyword_starts(sample.text, keywords)) - 1)
    rows = rows[rows >= 0]
    return rows[sample.loss_mask[rows]].astype(np.int32)


def keyword_starts(text: str, keywords: list[str]) -> np.ndarray:
    """Byte offsets in the UTF-8 of ``text`` at which a keyword begins as a whole word, int64 [M]."""
    words = "|".join(re.escape(word) for word in keywords)
    characters = [match.start() for match in re.finditer(rf"\b(?:{words})\b", text)]
    if text.isascii():
        return np.array(characters, np.int64)
    pieces = [text[start:stop] for start, stop in itertools.pairwise([0, *characters])]
    return np.cumsum([len(piece.encode()) for piece in pieces], dtype=np.int64)


def _tokens_at(sample: TokenSample, offsets: np.ndarray) -> np.ndarray:
    """First token that ends after each byte offset; offsets that no token covers are dropped."""
    tokens = np.searchsorted(sample.byte_end, offsets, side="right")
    inside = tokens < len(sample.input_ids)
    tokens, offsets = tokens[inside], offsets[inside]
    return tokens[sample.byte_start[tokens] <= offsets]


def to_request(sample: TokenSample, capture: CaptureConfig) -> Request:
    """Request for the engine: the sequence and the rows at which each signal is stored."""

    def rows(signal: str) -> np.ndarray:
        return select_rows(sample, capture.positions(signal), capture.keywords)

    return Request(
        sample.input_ids,
        logits_positions=rows("logits"),
        side_positions={name: rows(name) for name in capture.side_settings},
        seed=int(sample.key[:16], 16),
    )
