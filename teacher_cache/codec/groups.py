"""Split the bytes of rows into three sections by rank within the row, since their distributions differ by rank.

Each section holds its ranks of all rows, row by row. Rows may differ in length.
"""

import numpy as np

PLACES = (8, 24)  # ranks within a row at which the second and third section begin

index = np.uint64  # for hot loops: numba checks signed indices for negative values, which costs 50 % more


def split_groups(values_N: np.ndarray, lengths_P: np.ndarray, edges: tuple[int, int]) -> list[np.ndarray]:
    """Split concatenated rows into three sections, uint8 [1, …] each; ``edges``: as ``PLACES``."""
    place_N = np.arange(len(values_N)) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P)
    group_N = np.digitize(place_N, edges)
    return [values_N[group_N == group][None] for group in range(len(edges) + 1)]
