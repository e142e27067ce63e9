"""Items that are right or wrong, each independent: exact McNemar, and intervals that hold near 0 and 1 too."""

import math

from trainer.matrix.statistics.student_t import critical


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact p of the items that only one of two models has right (McNemar 1947): a fair coin for each."""
    n = only_a + only_b
    tail, ways = 0, 1  # of integers: exact for any n
    for k in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def paired_share_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two shares right of the same ``n`` items (Bonett and Price 2012).

    Wald's interval with one item more in each discordant cell and two more in all; within [-1, 1].
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = critical(1 - confidence, math.inf) * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(a - b - half, -1.0), min(a - b + half, 1.0)


def share_interval(share: float, n_effective: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); ``n_effective``: items that would give as much if independent.

    For clusters, n_effective = share · (1 - share) ÷ variance and the quantile is Student's (Korn and Graubard 1998).
    """
    z2 = quantile**2
    middle = (share + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    half = quantile * math.sqrt(share * (1 - share) / n_effective + z2 / (4 * n_effective**2)) / (1 + z2 / n_effective)
    return max(middle - half, 0.0), min(middle + half, 1.0)
