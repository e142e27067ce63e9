"""The best of each group by score, an exact share of it."""

import math
from fractions import Fraction

import numpy as np

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def best_share(score_N: np.ndarray, group_N: np.ndarray, number_N: np.ndarray, share: float) -> np.ndarray:
    """Which records belong to the best ⌈share · n⌉ of the n of their group, bool [N].

    score_N: float, finite. group_N: int. number_N: int64, distinct; its hash decides between equal scores.
    """
    group_of_N, n_G = np.unique(group_N, return_inverse=True, return_counts=True)[1:]
    exact = Fraction(str(share))  # 0.07 · 100 is 7, not 8
    wanted_G = np.array([math.ceil(exact * int(n)) for n in n_G], np.int64)
    order_N = np.lexsort((_hashed(number_N), -score_N, group_of_N))
    first_G = np.cumsum(n_G) - n_G
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(len(order_N)) - first_G[group_of_N[order_N]]
    return rank_N < wanted_G[group_of_N]


def _hashed(number_N: np.ndarray) -> np.ndarray:
    """splitmix64 of each number: distinct for distinct numbers."""
    mixed_N = number_N.astype(np.uint64) + np.uint64(_MIX[0])
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(_MIX[1])
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(_MIX[2])
    return mixed_N ^ (mixed_N >> np.uint64(31))
