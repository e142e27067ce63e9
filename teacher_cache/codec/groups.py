"""Bytes of rows in three sections, by their place in the row: they are distributed differently there.

Each section holds its places of all rows, row by row. Rows may differ in length.
"""

import numpy as np

from teacher_cache.codec.compiled import compiled

PLACES = (8, 24)  # of a row's entries, at which a new section begins

index = np.uint64  # for the hot loops: numba tests signed indices for being negative, half as much work again


def split_groups(values_N: np.ndarray, lengths_P: np.ndarray, edges: tuple[int, int]) -> list[np.ndarray]:
    """The three sections, uint8 [1, …] each, of rows that stand one after the other; ``edges`` as ``PLACES``."""
    place_N = np.arange(len(values_N)) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P)
    group_N = np.digitize(place_N, edges)
    return [values_N[group_N == group][None] for group in range(len(edges) + 1)]


@compiled
def join_groups(
    content: np.ndarray, starts: np.ndarray, lengths_P: np.ndarray, edges: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """The rows of three sections (``content`` and ``starts`` as in ``fill_ids``) one after the other, uint8 [N].

    Also how many of the P rows the sections have the bytes of: no row from there on is written.
    """
    values_N = np.empty(lengths_P.sum(), np.uint8)
    group_0, group_1 = content[starts[0] : starts[1]], content[starts[1] : starts[2]]
    group_2 = content[starts[2] : starts[3]]
    at, at_0, at_1, at_2 = index(0), 0, 0, 0
    for p in range(len(lengths_P)):
        length = int(lengths_P[p])
        n_0 = min(length, edges[0])
        n_1 = min(length, edges[1]) - n_0
        n_2 = length - n_0 - n_1
        if at_0 + n_0 > len(group_0) or at_1 + n_1 > len(group_1) or at_2 + n_2 > len(group_2):
            return values_N, p
        for i in range(index(n_0)):  # faster than slices, whose bounds are looked at
            values_N[at + i] = group_0[index(at_0) + i]
        at += index(n_0)
        for i in range(index(n_1)):
            values_N[at + i] = group_1[index(at_1) + i]
        at += index(n_1)
        for i in range(index(n_2)):
            values_N[at + i] = group_2[index(at_2) + i]
        at += index(n_2)
        at_0, at_1, at_2 = at_0 + n_0, at_1 + n_1, at_2 + n_2
    return values_N, len(lengths_P)
