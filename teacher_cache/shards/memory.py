"""Memory of batches, which is used again when nothing refers to a batch any more.

Fresh memory comes from the system page by page, each filled with zeros: that takes a quarter of the time in which a
batch is decoded into it.
"""

import numpy as np

SMALLEST = 1 << 20  # bytes; less is not worth keeping
LARGEST_RATIO = 4  # of a block's size to what is asked for
KEPT = 4  # blocks that nobody uses

_unused: dict[int, np.ndarray] = {}  # by id, oldest first; changed by single operations: blocks come back at any time


def borrow(n_bytes: int) -> np.ndarray:
    """An array uint8 [n_bytes], not initialised. It is given back when nothing refers to it any more."""
    if n_bytes < SMALLEST:
        return np.empty(n_bytes, np.uint8)
    sizes = [(memory.nbytes, key) for key, memory in list(_unused.items())]
    for size, key in sorted(sizes):
        if n_bytes <= size <= LARGEST_RATIO * n_bytes:
            memory = _unused.pop(key, None)
            if memory is not None:
                break
    else:
        memory = np.empty(-(-n_bytes // SMALLEST) * SMALLEST, np.uint8)  # so that others of about the size can have it
    return np.asarray(_Loan(memory))[:n_bytes]


class _Loan:
    """What arrays refer to that lie in borrowed memory."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _unused[id(self._memory)] = self._memory
        for oldest in list(_unused)[:-KEPT]:
            _unused.pop(oldest, None)
