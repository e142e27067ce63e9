"""Holm's adjustment for many tests (Holm 1979): the chance of one false "better" among all of them stays below 5 %."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: of the i-th smallest of m, p · (m - i + 1), never falling, at most 1."""
    p_M = np.asarray(p_values, np.float64)
    order_M = np.argsort(p_M, kind="stable")
    stepped_M = np.maximum.accumulate(p_M[order_M] * np.arange(len(p_M), 0, -1))
    adjusted_M = np.empty_like(p_M)
    adjusted_M[order_M] = np.minimum(stepped_M, 1)
    return adjusted_M.tolist()
