"""How token ids are spelled. A cache stores no vocabulary: a tokenizer has it, or the texts show part of it."""

from typing import Any

import numpy as np

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.manifest import TokenizerInfo
from teacher_cache.records import TokenSample

MOST_CHARACTERS = 200  # of a token, in the page


class Spelling:
    """The spellings of ids: from the texts that were added; or all, of a tokenizer."""

    def __init__(self, vocab_size: int, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._known_V = np.zeros(vocab_size, bool)
        self._spelled: dict[int, str] = {}

    def add(self, sample: TokenSample) -> None:
        """Learn the tokens of a sequence that were not met before; not those that are part of a character only."""
        if self._tokenizer is not None:
            return
        new = np.flatnonzero(~self._known_V[sample.input_ids])
        if not len(new):
            return
        data = sample.text.encode()
        for place in new.tolist():
            index = int(sample.input_ids[place])
            text, cut = token_text(data, int(sample.byte_start[place]), int(sample.byte_end[place]))
            if text and not cut:
                self._spelled.setdefault(index, text)
                self._known_V[index] = True

    def __getitem__(self, index: int) -> str | None:
        """The spelling of an id; None if it is not known."""
        if self._tokenizer is not None:
            return self._tokenizer.decode([index])[:MOST_CHARACTERS]
        return self._spelled.get(index)


def token_text(data: bytes, start: int, stop: int) -> tuple[str, str]:
    """A token's characters, and its bytes in hex if it cuts one (else nothing); long ones not in full.

    ``data`` is UTF-8. A character that several tokens make is the one's in which it begins.
    """
    cut = start < stop and (_continues(data, start) or _continues(data, stop))
    spelled = data[start : min(stop, start + 8)].hex(" ") if cut else ""
    stop = min(stop, start + 4 * MOST_CHARACTERS)
    while start < stop and _continues(data, start):
        start += 1
    while start < stop and _continues(data, stop):
        stop += 1
    return data[start:stop].decode()[:MOST_CHARACTERS], spelled


def _continues(data: bytes, place: int) -> bool:
    return place < len(data) and data[place] & 0xC0 == 0x80


def load_tokenizer(folder: str, wanted: TokenizerInfo) -> Any:
    """The tokenizer in ``folder``. Raises UserError when it cannot be loaded or is not the one of the cache."""
    from teacher_cache.teacher import load_tokenizer as load
    from teacher_cache.tokenizer import describe_tokenizer

    tokenizer = load(TeacherConfig(path=folder))
    found = describe_tokenizer(tokenizer).fingerprint
    if found != wanted.fingerprint:
        raise UserError(
            f"--tokenizer {folder}: its fingerprint is {found}, the cache was made with {wanted.fingerprint}; give the "
            "teacher's, or leave the option out"
        )
    return tokenizer
