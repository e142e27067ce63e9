"""Why a reply is not trained on, as far as a machine can tell.

==============  ====================================================================================================
repetitive      a block of up to 64 tokens follows itself at least three times, over at least ``repeated_tokens``
truncated       it ended at ``max_new_tokens``
undecodable     its ids spell no UTF-8, or are not the tokenizer's
empty           nothing but white space and special tokens
special         it holds a special token before its end, as where a model writes on after the end of its turn
refused         it begins with one of ``refusals`` (after ``</think>``), which are words of one language
==============  ====================================================================================================

The first that holds is given: of a reply that runs in a circle until it is cut off, a larger ``max_new_tokens`` would
make more of the same.
"""

from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.generate_config import RejectConfig
from teacher_cache.codec.compiled import compiled
from teacher_cache.corpus.token_spans import ByteTokenizer, special_ids

LONGEST_BLOCK = 64
REPEATS = 3  # times that a block follows itself
_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_THOUGHT = "</think>"


class Rejecter:
    """Turns a reply's ids into its text and its reject reason."""

    def __init__(self, tokenizer: ByteTokenizer, special: set[int], config: RejectConfig) -> None:
        """``special``: ids that stand for no text."""
        self._tokenizer = tokenizer
        self._special = np.array(sorted(special), np.uint32)
        self._forbidden = np.array(forbidden_ids(tokenizer.tokenizer, config), np.uint32)
        self._repeated = config.repeated_tokens
        self._refusals = tuple(refusal.translate(_QUOTES).casefold() for refusal in config.refusals)

    def judge(self, ids: np.ndarray, finish: str) -> tuple[str, str]:
        """The text of a reply (uint32 [N]) without the token that ends it, and the reason; an empty one: accepted."""
        own = ids[:-1] if finish == "stop" else ids
        data = self._tokenizer.spell(own).data
        text = data.decode("utf-8", "replace")
        known = len(self._tokenizer.table.length_V)
        if self._repeated is not None and longest_repetition(own, LONGEST_BLOCK, REPEATS) >= self._repeated:
            return text, "repetitive"
        if finish != "stop":
            return text, "truncated"
        if (ids >= known).any() or text.encode() != data:
            return text, "undecodable"
        if not self._tokenizer.spell(own[~np.isin(own, self._special)]).data.strip():
            return text, "empty"
        if np.isin(own, self._forbidden).any():
            return text, "special"
        said = text.rpartition(_THOUGHT)[2].lstrip().translate(_QUOTES)
        return text, "refused" if said[:1024].casefold().startswith(self._refusals) else ""


def forbidden_ids(tokenizer: Any, config: RejectConfig) -> list[int]:
    """Tokens that are special to ``tokenizer`` and that no reply may hold before its end. Raises UserError."""
    if config.allowed_special is None:
        return []
    by_text = {str(tokenizer.added_tokens_decoder[token]): token for token in special_ids(tokenizer)}
    if unknown := [text for text in config.allowed_special if text not in by_text]:
        raise UserError(
            f"reject.allowed_special: {unknown[0]!r} is no special token of the generator; it has "
            f"{', '.join(sorted(by_text)[:8])}{', …' if len(by_text) > 8 else ''}"
        )
    return sorted({*by_text.values()} - {by_text[text] for text in config.allowed_special})


@compiled
def longest_repetition(ids_N: np.ndarray, longest_block: int, repeats: int) -> int:
    """Tokens of the longest run in which a block of at most ``longest_block`` follows itself ``repeats`` times or more.

    The first occurrence of the block is not counted.
    """
    longest = 0
    for block in range(1, min(longest_block, len(ids_N) // 2) + 1):
        run = 0
        for t in range(block, len(ids_N)):
            run = run + 1 if ids_N[t] == ids_N[t - block] else 0
            if run >= repeats * block and run > longest:
                longest = run
    return longest
