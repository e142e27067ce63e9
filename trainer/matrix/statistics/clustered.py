"""The mean of items, its variance by clusters, and how far that variance can be trusted.

Items of one cluster (questions on one document, a subject) are not independent: their errors add up within a cluster
before they are squared (Miller, arXiv 2411.00640). With few clusters that variance is too small, and so is a normal
quantile. Therefore each cluster is divided by 1 - n_g/N (CR2, Bell and McCaffrey 2002; for G clusters of equal size
the factor G/(G-1)), and the quantile is of Student's t with Satterthwaite's degrees of freedom for clusters that
correlate as these do (Imbens and Kolesár 2016); for clusters of equal size they are G - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClusteredMean:
    """A mean with the variance of its error."""

    mean: float
    variance: float
    df: float
    clusters: int


def cluster_codes(names: Sequence[str]) -> Ints:
    """Numbers 0 … G - 1 of the clusters of items [N]; an item without one, "", is a cluster of its own.

    Items that all name one cluster are taken as independent: one cluster tells nothing of the noise between clusters.
    """
    if len({*names}) == 1:
        return np.arange(len(names))
    alone = [name or (index,) for index, name in enumerate(names)]
    number = {name: code for code, name in enumerate(dict.fromkeys(alone))}
    return np.array([number[name] for name in alone], np.int64)


def cluster_sums(value_N: Floats, cluster_N: Ints) -> Floats:
    """Sums [G] over the items of each cluster."""
    return np.bincount(cluster_N, weights=value_N).astype(np.float64)


def variance_of_mean(error_N: Floats, cluster_N: Ints) -> float:
    """Variance of the mean of items whose deviations from their mean are ``error_N``; needs two clusters."""
    share_G = np.bincount(cluster_N) / len(error_N)
    return float((cluster_sums(error_N, cluster_N) ** 2 / (1 - share_G)).sum()) / len(error_N) ** 2


def clustered_mean(value_N: Floats, cluster_N: Ints) -> ClusteredMean:
    """The mean of ``value_N`` over two or more clusters, numbered 0 … G - 1."""
    mean = float(value_N.mean())
    error_N = value_N - mean
    size_G = np.bincount(cluster_N)
    variance_G = size_G * (1 + (size_G - 1) * correlation_within(error_N, cluster_N))
    df = degrees_of_freedom(size_G, variance_G)
    return ClusteredMean(mean, variance_of_mean(error_N, cluster_N), df, len(size_G))


def correlation_within(error_N: Floats, cluster_N: Ints) -> float:
    """The intraclass correlation, in [0, 1]: the mean product of two items of one cluster ÷ the variance of items."""
    size_G = np.bincount(cluster_N)
    pairs = float((size_G * (size_G - 1)).sum())
    squares = float((error_N**2).sum())
    if not pairs or not squares:
        return 0.0
    products = float((cluster_sums(error_N, cluster_N) ** 2).sum()) - squares
    return min(max(products / pairs / (squares / len(error_N)), 0.0), 1.0)


def degrees_of_freedom(size_G: Ints, variance_G: Floats) -> float:
    """Satterthwaite's: 2 E² ÷ Var of the variance of a mean, for normal cluster sums with variances ``variance_G``.

    The variance is the quadratic form u'Qu of the sums u: Q_gh = a_g δ_gh - w_g - w_h + c, with shares p_g = n_g/N,
    a_g = 1/(1 - p_g), w_g = a_g p_g, c = Σ a_g p_g². So df = tr(DQ)² ÷ tr(DQDQ), D = diag(``variance_G``), which is
    multiplied out here, so that no G × G matrix is needed.
    """
    share_G = size_G / size_G.sum()
    a_G = 1 / (1 - share_G)
    w_G = a_G * share_G
    c = float((w_G * share_G).sum())
    v_G = variance_G / variance_G.sum()
    trace = float((v_G * (a_G - 2 * w_G + c)).sum())
    s1, s2 = float((v_G * w_G).sum()), float((v_G * w_G**2).sum())
    everywhere = c**2 + 2 * s2 - 4 * c * s1 + 2 * s1**2  # Σ v_g v_h (c - w_g - w_h)²
    on_diagonal = float((v_G**2 * ((a_G - 2 * w_G + c) ** 2 - (c - 2 * w_G) ** 2)).sum())
    return trace**2 / (everywhere + on_diagonal)
