"""Rows that a payload stores, as a section: one bit per token, eight per byte, lowest bit first.

Tokens beyond the section's end have no row.
"""

import numpy as np

from teacher_cache.codec.compiled import compiled, refused_as_corrupt


def encode_positions(positions_P: np.ndarray) -> np.ndarray:
    """Encode ascending row numbers into the section, uint8 [1, B]."""
    bits = np.zeros(positions_P[-1] + 1 if len(positions_P) else 0, np.bool_)
    bits[positions_P] = True
    return np.packbits(bits, bitorder="little")[None]


def decode_positions(section: np.ndarray, num_tokens: int) -> np.ndarray:
    """Decode ascending row numbers, int32 [P]. Raises CorruptCacheError if one is ``num_tokens`` or more."""
    with refused_as_corrupt():
        return row_numbers(section, num_tokens)


@compiled
def row_numbers(section: np.ndarray, num_tokens: int) -> np.ndarray:
    """``decode_positions`` for compiled loops. Raises ValueError(what, value seen, value wanted)."""
    if len(section) > (num_tokens + 7) // 8:
        raise ValueError("bytes of positions", len(section), (num_tokens + 7) // 8)
    positions_P = np.empty(num_tokens, np.int32)
    n = 0
    for s in range(8 * len(section)):
        if (section[s >> 3] >> (s & 7)) & 1:
            if s >= num_tokens:
                raise ValueError("a position", s, num_tokens - 1)
            positions_P[n] = s
            n += 1
    return positions_P[:n]


def most_bytes(num_tokens: int) -> int:
    """Upper bound of the section's size in bytes."""
    return -(-num_tokens // 8)
