"""Memory pool for batches: a buffer is reused once nothing references its batch.

Fresh memory is zero-filled by the kernel page by page, which takes a quarter of the time of decoding a batch into it.
"""

import numpy as np

SMALLEST = 1 << 20  # bytes; smaller blocks are not pooled
LARGEST_RATIO = 4  # of block size to requested size
KEPT = 4  # unused blocks in the pool

_unused: dict[int, np.ndarray] = {}  # by id, oldest first; atomic operations only: blocks are returned at any time


def borrow(n_bytes: int) -> np.ndarray:
    """An uninitialised uint8 [n_bytes] array, returned to the pool once nothing references it."""
    if n_bytes < SMALLEST:
        return np.empty(n_bytes, np.uint8)
    sizes = [(memory.nbytes, key) for key, memory in list(_unused.items())]
    for size, key in sorted(sizes):
        if n_bytes <= size <= LARGEST_RATIO * n_bytes:
            memory = _unused.pop(key, None)
            if memory is not None:
                break
    else:
        memory = np.empty(-(-n_bytes // SMALLEST) * SMALLEST, np.uint8)  # rounded up, for reuse by similar sizes
    return np.asarray(_Loan(memory))[:n_bytes]


class _Loan:
    """Base object of all arrays in one pooled block; returns the block when it is collected."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _unused[id(self._memory)] = self._memory
        for oldest in list(_unused)[:-KEPT]:
            _unused.pop(oldest, None)
