"""Bytes of rows in three sections, by their place in the row: they are distributed differently there.

Each section holds its places of all rows, row by row. Rows may differ in length.
"""

import numpy as np

PLACES = (8, 24)  # of a row's entries, at which a new section begins

index = np.uint64  # for the hot loops: numba tests signed indices for being negative, half as much work again


def split_groups(values_N: np.ndarray, lengths_P: np.ndarray, edges: tuple[int, int]) -> list[np.ndarray]:
    """The three sections, uint8 [1, …] each, of rows that stand one after the other; ``edges`` as ``PLACES``."""
    place_N = np.arange(len(values_N)) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P)
    group_N = np.digitize(place_N, edges)
    return [values_N[group_N == group][None] for group in range(len(edges) + 1)]
