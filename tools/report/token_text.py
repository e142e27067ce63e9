"""Spelling of token ids. A cache stores no vocabulary: it comes from a tokenizer, or in part from the texts."""

from typing import Any

import numpy as np

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.manifest import TokenizerInfo
from teacher_cache.records import TokenSample

MOST_CHARACTERS = 200  # of a token, in the page


class Spelling:
    """Spellings of token ids: all of them from a tokenizer, or those that occur in the added texts."""

    def __init__(self, vocab_size: int, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._known_V = np.zeros(vocab_size, bool)
        self._spelled: dict[int, str] = {}

    def add(self, sample: TokenSample) -> None:
        """Learn new tokens from a sequence, except those that hold only part of a character."""
        if self._tokenizer is not None:
            return
        new = np.flatnonzero(~self._known_V[sample.input_ids])
        if not len(new):
            return
        data = sample.text.encode()
        for position in new.tolist():
            token_id = int(sample.input_ids[position])
            text, split_bytes = token_text(data, int(sample.byte_start[position]), int(sample.byte_end[position]))
            if text and not split_bytes:
                self._spelled.setdefault(token_id, text)
                self._known_V[token_id] = True

    def __getitem__(self, token_id: int) -> str | None:
        """The spelling of an id; None if unknown."""
        if self._tokenizer is not None:
            return self._tokenizer.decode([token_id])[:MOST_CHARACTERS]
        return self._spelled.get(token_id)


def token_text(data: bytes, start: int, stop: int) -> tuple[str, str]:
    """A token's characters, and its bytes in hex if it splits a character (else ""); both truncated if long.

    ``data`` is UTF-8. A character split over several tokens belongs to the first of them.
    """
    splits = start < stop and (_continues(data, start) or _continues(data, stop))
    raw = data[start : min(stop, start + 8)].hex(" ") if splits else ""
    stop = min(stop, start + 4 * MOST_CHARACTERS)
    while start < stop and _continues(data, start):
        start += 1
    while start < stop and _continues(data, stop):
        stop += 1
    return data[start:stop].decode()[:MOST_CHARACTERS], raw


def _continues(data: bytes, offset: int) -> bool:
    """Whether the byte at ``offset`` continues a character."""
    return offset < len(data) and data[offset] & 0xC0 == 0x80


def load_tokenizer(folder: str, wanted: TokenizerInfo) -> Any:
    """Load the tokenizer in ``folder``. Raises UserError when it cannot be loaded or is not the cache's."""
    from teacher_cache.teacher import load_tokenizer as load
    from teacher_cache.tokenizer import describe_tokenizer

    tokenizer = load(TeacherConfig(path=folder))
    found = describe_tokenizer(tokenizer).fingerprint
    if found != wanted.fingerprint:
        raise UserError(
            f"--tokenizer {folder}: fingerprint {found}, wanted the cache's, {wanted.fingerprint}; give the teacher's "
            "folder, or leave the option out"
        )
    return tokenizer
