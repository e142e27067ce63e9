"""Which rows of a sequence a payload is about, as a section: a bit a token, eight a byte, the first in the lowest bit.

Tokens beyond the section's end have no bit set.
"""

import numpy as np

from schemas.errors import CorruptCacheError


def encode_positions(positions_P: np.ndarray) -> np.ndarray:
    """The section, uint8 [1, B], of row numbers that rise."""
    bits = np.zeros(positions_P[-1] + 1 if len(positions_P) else 0, np.bool_)
    bits[positions_P] = True
    return np.packbits(bits, bitorder="little")[None]


def decode_positions(section: np.ndarray, num_tokens: int) -> np.ndarray:
    """Row numbers int32 [P], rising. Raises CorruptCacheError unless they are of a sequence of ``num_tokens``."""
    return np.flatnonzero(decode_bits(section, num_tokens)).astype(np.int32)


def decode_bits(section: np.ndarray, num_tokens: int) -> np.ndarray:
    """The same as a bool for each token, [S]."""
    if len(section) > most_bytes(num_tokens):
        raise CorruptCacheError(f"{len(section)} bytes of positions, wanted at most {most_bytes(num_tokens)}")
    if len(section) == 0:  # of which numpy makes any number of undefined bits
        return np.zeros(num_tokens, np.bool_)
    end = 8 * (len(section) - 1) + int(section[-1]).bit_length()
    if end > num_tokens:
        raise CorruptCacheError(f"position {end - 1}, wanted one below {num_tokens}")
    return np.unpackbits(section, count=num_tokens, bitorder="little").view(np.bool_)


def most_bytes(num_tokens: int) -> int:
    """What the section may take, at most."""
    return -(-num_tokens // 8)
