"""Samples that several shards hold, found by their keys: hashes of content, of which 16 bytes each are kept.

That hash need not resist anybody: whoever wants a sample dropped can give another one its key.
"""

from collections.abc import Iterable

import numpy as np
import xxhash

KEY_BYTES = 16
COMPARED = 1 << 20  # at a time


class SampleKeys:
    """Keys of samples in the order they are added; ten million take 160 MB, and three times that to be compared."""

    def __init__(self) -> None:
        self._hashes = bytearray()

    def add(self, keys: Iterable[str]) -> None:
        """Append keys, of any length: they are hashed."""
        self._hashes += b"".join(map(xxhash.xxh3_128_digest, map(str.encode, keys)))

    def __len__(self) -> int:
        return len(self._hashes) // KEY_BYTES

    def repeated(self) -> np.ndarray:
        """Which samples have the key of an earlier one, bool [N]."""
        halves_N2 = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2)
        order_N = np.lexsort(halves_N2.T)  # stable: of equal keys the first stays first
        repeated_N = np.zeros(len(self), bool)
        for block in range(1, len(order_N), COMPARED):
            at_B = order_N[block : block + COMPARED]
            before_B = order_N[block - 1 : block - 1 + len(at_B)]
            repeated_N[at_B] = (halves_N2[at_B] == halves_N2[before_B]).all(axis=1)
        return repeated_N

    def first_like(self, sample: int) -> int:
        """The first sample with the key of this one."""
        halves_N2 = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2)
        return int(np.flatnonzero((halves_N2 == halves_N2[sample]).all(axis=1))[0])
