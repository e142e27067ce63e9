"""The symmetric studentised bootstrap of a mean over problems or clusters (Efron and Tibshirani 1993, 12.5; Hall 1988).

Clusters are drawn with replacement, whole. Of a resample t* = (mean* - mean) ÷ its own standard error is kept: the
quantiles of |t*| know how skewed the scores are, which those of a normal distribution do not, and for few problems they
cover more often than percentiles of the means do.
"""

import math

import numpy as np

from trainer.matrix.statistics.clustered import Floats, Ints, cluster_sums

RESAMPLES = 9_999
AT_ONCE = 1 << 20  # clusters drawn at a time, of all resamples: some 50 MB


def studentised_means(value_N: Floats, cluster_N: Ints, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """|t*| [B] of the resamples, sorted; ∞ where all clusters of a resample agree.

    The standard error is that of ``standard_error``. The same arguments give the same resamples.
    """
    size_G = np.bincount(cluster_N).astype(np.float64)
    sum_G = cluster_sums(value_N - value_N.mean(), cluster_N)
    rng = np.random.default_rng(seed)
    clusters, t_B = len(size_G), np.empty(resamples)
    least = 1e-9 * standard_error(value_N, cluster_N)  # below it is rounding: all clusters of the resample agree
    chunk = max(1, AT_ONCE // clusters)
    for start in range(0, resamples, chunk):
        drawn_BG = rng.integers(0, clusters, (min(chunk, resamples - start), clusters))
        drawn_size_BG = size_G[drawn_BG]
        drawn_sum_BG = sum_G[drawn_BG]
        mean_B = drawn_sum_BG.sum(axis=1) / drawn_size_BG.sum(axis=1)
        error_B = _error(drawn_sum_BG, drawn_size_BG)
        with np.errstate(divide="ignore", invalid="ignore"):
            t_B[start : start + chunk] = np.where(error_B > least, np.abs(mean_B) / error_B, np.inf)
    return np.sort(t_B)


def standard_error(value_N: Floats, cluster_N: Ints) -> float:
    """Clustered standard error of the mean, with the factor G/(G-1) for all clusters."""
    size_G = np.bincount(cluster_N).astype(np.float64)
    return float(_error(cluster_sums(value_N - value_N.mean(), cluster_N)[None], size_G[None])[0])


def bootstrap_mean(
    value_N: Floats, cluster_N: Ints, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Half the width of the interval around the mean, and the two-sided p of a mean of 0.

    The half is ∞ if more than 1 - confidence of the resamples hold one value only: two or three items differ at all.
    p is (1 + resamples at least as far as the mean) ÷ (1 + resamples): never 0, and ≤ 1 - confidence exactly when the
    interval excludes 0.
    """
    t_B = studentised_means(value_N, cluster_N, resamples, seed)
    error = standard_error(value_N, cluster_N)
    if error == 0:
        return 0.0, 1.0 if not value_N.mean() else 1 / (1 + resamples)
    t = abs(float(value_N.mean())) / error
    at_least = resamples - int(np.searchsorted(t_B, t, side="left"))
    place = math.ceil(confidence * (1 + resamples) - 1e-9) - 1  # of the quantile: 1 - confidence of the B + 1 lie above
    return float(t_B[min(place, resamples - 1)]) * error, (1 + at_least) / (1 + resamples)


def _error(sum_BG: Floats, size_BG: Floats) -> Floats:
    """Standard errors [B] of the means Σ sums ÷ Σ sizes."""
    clusters, all_B = sum_BG.shape[1], size_BG.sum(axis=1)
    mean_B = sum_BG.sum(axis=1) / all_B
    squares_B = ((sum_BG - mean_B[:, None] * size_BG) ** 2).sum(axis=1)
    return np.sqrt(squares_B * clusters / (clusters - 1)) / all_B
