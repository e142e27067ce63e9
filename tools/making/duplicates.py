"""Detection of duplicate samples across shards by their keys, at 16 bytes a key.

The 128-bit hash of a key is not cryptographic, and need not be: anyone can give a sample another one's key anyway.
"""

from collections.abc import Iterable

import numpy as np
import xxhash

KEY_BYTES = 16
BLOCK = 1 << 20  # keys compared at a time


class SampleKeys:
    """Sample keys in the order added. Ten million take 160 MB, and three times that while being compared."""

    def __init__(self) -> None:
        self._hashes = bytearray()

    def add(self, keys: Iterable[str]) -> None:
        """Append the hashes of keys of any length."""
        self._hashes += b"".join(map(xxhash.xxh3_128_digest, map(str.encode, keys)))

    def __len__(self) -> int:
        return len(self._hashes) // KEY_BYTES

    def repeated(self) -> np.ndarray:
        """Which samples repeat the key of an earlier one, bool [N]."""
        halves_N2 = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2)
        order_N = np.lexsort(halves_N2.T)  # stable: equal keys keep their order
        repeated_N = np.zeros(len(self), bool)
        for block in range(1, len(order_N), BLOCK):
            at_B = order_N[block : block + BLOCK]
            before_B = order_N[block - 1 : block - 1 + len(at_B)]
            repeated_N[at_B] = (halves_N2[at_B] == halves_N2[before_B]).all(axis=1)
        return repeated_N

    def first_like(self, sample: int) -> int:
        """The first sample with the same key as ``sample``."""
        halves_N2 = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2)
        return int(np.flatnonzero((halves_N2 == halves_N2[sample]).all(axis=1))[0])
