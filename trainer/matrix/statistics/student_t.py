"""Student's t distribution with any positive number of degrees of freedom; ∞ is the normal distribution.

The project does not depend on scipy. With t = √df · tan θ, P(|T| ≤ t) is the integral of cos^(df-1) from 0 to θ over
that up to π/2 (Abramowitz and Stegun, 26.7.3 and 26.7.4): smooth, so that Gauss-Legendre quadrature gives it to 1e-8.
"""

import math
from functools import lru_cache

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
NORMAL_FROM = 1e7  # degrees of freedom above which the normal distribution is as near
FARTHEST = 40.0  # |t| beyond which a bell-shaped density is zero in float64


def two_sided_p(t: float, df: float) -> float:
    """P(|T| ≥ |t|), to an absolute error of 1e-8 (1e-6 for 1 < df < 2)."""
    t = abs(t)
    if df > NORMAL_FROM:
        return math.erfc(t / math.sqrt(2))
    if df > 100 and t > FARTHEST:
        return 0.0
    angle = math.atan(t / math.sqrt(df))
    angles = angle * (NODES + 1) / 2
    integral = float(np.exp((df - 1) * np.log(np.cos(angles))) @ WEIGHTS) * angle / 2
    norm = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) * 2 / math.sqrt(math.pi)
    return min(max(1 - norm * integral, 0.0), 1.0)


@lru_cache(maxsize=4096)
def critical(p: float, df: float) -> float:
    """The t with P(|T| ≥ t) = p, for 0 < p ≤ 1."""
    low, high = 0.0, math.pi / 2  # of θ; by bisection, since P falls in θ
    scale = math.sqrt(min(df, NORMAL_FROM))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(scale * math.tan(middle), df) > p else (low, middle)
    return scale * math.tan(low)
