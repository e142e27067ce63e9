"""Memory of batches, which is used again when nothing refers to a batch any more.

Fresh memory comes from the system page by page, each filled with zeros: that takes a quarter of the time in which a
batch is decoded into it.
"""

import numpy as np

KEPT = 4  # blocks that nobody uses
GRAIN = 1 << 20  # bytes; sizes of blocks are multiples of it, so that batches of about the same size can share one

_unused: dict[int, np.ndarray] = {}  # by id; changed by single operations only: blocks come back at any time


def borrow(n_bytes: int) -> np.ndarray:
    """An array uint8 [n_bytes], not initialised. It is given back when nothing refers to it any more."""
    fitting = [(memory.nbytes, key) for key, memory in list(_unused.items()) if memory.nbytes >= n_bytes]
    for _, key in sorted(fitting):
        memory = _unused.pop(key, None)
        if memory is not None:
            break
    else:
        memory = np.empty(-(-n_bytes // GRAIN) * GRAIN, np.uint8)
    return np.asarray(_Loan(memory))[:n_bytes]


class _Loan:
    """What arrays refer to that lie in borrowed memory."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _unused[id(self._memory)] = self._memory
        while len(_unused) > KEPT:
            smallest = min(list(_unused.items()), key=lambda item: item[1].nbytes)
            _unused.pop(smallest[0], None)
