"""Stored entries at a temperature."""

import numpy as np

from teacher_cache.records import LogitsSample


def softened_probabilities(rows: LogitsSample, column: int, temperature: float) -> np.ndarray:
    """p_T(v) = exp(log p(v) / T - log Σ p^(1/T)) of the stored entries, float64 [P, K]; 0 in the padding.

    column: of the log-partition at ``temperature``.
    """
    return np.exp(rows.logprobs.astype(np.float64) / temperature - rows.log_partition[:, column, None])
