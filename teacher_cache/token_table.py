"""The bytes of every token of a vocabulary.

Shape letters: V tokens, B bytes of all tokens, one after the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TokenTable(NamedTuple):
    """Bytes of V tokens. A token that stands for no text (special, or not assigned) has none."""

    bytes_B: np.ndarray  # uint8
    begin_V: np.ndarray  # int64; of a token's bytes in ``bytes_B``
    length_V: np.ndarray  # int64

    @classmethod
    def of(cls, tokens: Sequence[bytes]) -> "TokenTable":
        """The table of these tokens, by id."""
        length_V = np.fromiter(map(len, tokens), np.int64, len(tokens))
        return cls(np.frombuffer(b"".join(tokens), np.uint8), np.cumsum(length_V) - length_V, length_V)

    def token(self, index: int) -> bytes:
        """The bytes of one token."""
        begin = int(self.begin_V[index])
        return self.bytes_B[begin : begin + int(self.length_V[index])].tobytes()

    def without(self, ids: Sequence[int] | np.ndarray) -> "TokenTable":
        """The table in which these tokens have no bytes."""
        length_V = self.length_V.copy()
        length_V[ids] = 0
        return self._replace(length_V=length_V)


class Vocabulary(NamedTuple):
    """What a cache says of the teacher's tokens. Special tokens have the bytes by which they are written."""

    table: TokenTable
    is_special_V: np.ndarray  # bool; stands for no text
    is_stop_V: np.ndarray  # bool; ends a text or a turn

    def as_text(self) -> TokenTable:
        """The table without the bytes of special tokens, which a text cannot hold."""
        return self.table.without(np.flatnonzero(self.is_special_V))
