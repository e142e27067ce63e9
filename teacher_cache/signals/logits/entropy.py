"""Entropy of stored rows."""

import numpy as np

from teacher_cache.records import LogitsSample


def bucket_entropy(sample: LogitsSample) -> np.ndarray:
    """Entropy (nats, float64 [P]) of each row's stored entries plus one bucket for all other tokens.

    By the grouping property of entropy, a lower bound of the row's entropy; exact if all tokens are stored.
    """
    probabilities = np.exp(sample.logprobs.astype(np.float64))
    finite_logprobs = np.where(probabilities > 0, sample.logprobs, 0)
    stored = -np.sum(probabilities * finite_logprobs, axis=1)
    rest = np.clip(1 - probabilities.sum(axis=1), 0, 1)
    return stored - rest * np.log(np.where(rest > 0, rest, 1))
