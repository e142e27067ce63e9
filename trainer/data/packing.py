"""Pack samples into rows of a fixed number of tokens."""

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Groups of indices into ``lengths`` whose sums are ≤ ``capacity``, by best fit decreasing.

    Short samples fill the gaps: a few percent of padding, where first-come order leaves a quarter or more. Every length
    must be ≤ capacity.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        slot = bisect_left(room, (length, -1))
        if slot < len(room):
            free, row = room.pop(slot)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(room, (free - length, row))
    return rows
