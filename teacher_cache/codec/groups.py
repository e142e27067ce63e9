"""Split the bytes of rows into three sections by rank within the row, since their distributions differ by rank.

Each section holds its ranks of all rows, row by row. Rows may differ in length.
"""

import numpy as np

from teacher_cache.codec.compiled import compiled

PLACES = (8, 24)  # ranks within a row at which the second and third section begin

index = np.uint64  # for hot loops: numba checks signed indices for negative values, which costs 50 % more


def split_groups(values_N: np.ndarray, lengths_P: np.ndarray, edges: tuple[int, int]) -> list[np.ndarray]:
    """Split concatenated rows into three sections, uint8 [1, …] each; ``edges``: as ``PLACES``."""
    content, starts = _grouped(values_N, lengths_P, *edges)
    return [content[None, starts[i] : starts[i + 1]] for i in range(len(edges) + 1)]


@compiled
def _grouped(values_N: np.ndarray, lengths_P: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """The three sections, one after the other, uint8 [N], and their starts, int64 [4]."""
    starts = np.zeros(4, np.int64)
    for p in range(len(lengths_P)):
        length = lengths_P[p]
        starts[1] += min(length, first)
        starts[2] += min(length, second)
        starts[3] += length
    content, at = np.empty(len(values_N), np.uint8), starts.copy()
    n = 0
    for p in range(len(lengths_P)):
        for k in range(lengths_P[p]):
            group = 0 if k < first else 1 if k < second else 2
            content[at[group]] = values_N[n]
            at[group] += 1
            n += 1
    return content, starts
