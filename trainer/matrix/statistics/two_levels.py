"""Scores of several training seeds on the same items: a mean over both levels, and the noise of each.

The score of seed s on item i is mean + seed_s + item_i + rest_si, both seeds and items drawn at random. The variance of
the mean over S seeds and N items is σ²_seed/S + σ²_item/N + σ²_rest/(SN), the crossed model of studies with several
readers and cases (Dorfman, Berbaum and Metz 1992; Hillis, Berbaum and Metz 2008). It is estimated in three parts:

- ``seeds``: the variance of the S means over items ÷ S, which expects σ²_seed/S + σ²_rest/(SN);
- ``items``: the clustered variance of the N means over seeds ÷ N, which expects σ²_item/N + σ²_rest/(SN);
- ``rest``: σ²_rest/(SN), that is in both and so counted once.

With 3 or 5 seeds ``seeds`` is a poor estimate, by chance often far too small. Resampling both levels, and
Satterthwaite's degrees of freedom, believe it and cover too seldom. Cochran (Biometrics 20, 1964, 191-195) weighs two
quantiles of Student's t, with S - 1 and with the items' degrees of freedom, by their shares of the variance. His
weighted mean covers up to 97.3 % at 3 seeds; the geometric one that is taken here covers 94.5 to 96.8 % with 3 seeds or
more, whatever the shares, but down to 91.5 % with 2. ``benchmarks/interval_coverage.py`` has the figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.matrix.statistics.clustered import Floats, Ints, clustered_mean, variance_of_mean
from trainer.matrix.statistics.student_t import critical, two_sided_p


@dataclass(frozen=True)
class Noise:
    """Variances of a mean, by level; ``seeds`` is 0 where every arm has one seed."""

    items: float
    items_df: float
    seeds: float = 0.0
    seeds_df: float = math.inf
    rest: float = 0.0

    @property
    def of_items(self) -> float:
        """The items' variance without what ``seeds`` already has."""
        return max(self.items - self.rest, 0.0)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.seeds + self.of_items)

    @property
    def seeds_weight(self) -> float:
        """The share of the seeds in the variance."""
        return self.seeds / (self.seeds + self.of_items) if self.seeds else 0.0

    def quantile(self, p: float) -> float:
        """The t with a two-sided tail of ``p``: the weighted geometric mean of those of seeds and of items."""
        weight = self.seeds_weight
        if weight in (0, 1):
            return critical(p, self.seeds_df if weight else self.items_df)
        return critical(p, self.seeds_df) ** weight * critical(p, self.items_df) ** (1 - weight)

    def p_value(self, mean: float) -> float:
        """The two-sided p at which ``quantile`` · ``error`` is |mean|."""
        if not self.error or not mean:
            return 0.0 if mean else 1.0
        t, weight = abs(mean) / self.error, self.seeds_weight
        if weight in (0, 1):
            return two_sided_p(t, self.seeds_df if weight else self.items_df)
        log_t = math.log(t)
        low, high = log_t - 20, log_t + 20  # logarithms of the seeds' quantile; that of the items falls as it rises
        for _ in range(60):
            of_seeds = (low + high) / 2
            of_items = min((log_t - weight * of_seeds) / (1 - weight), 300.0)
            above = two_sided_p(math.exp(of_seeds), self.seeds_df) > two_sided_p(math.exp(of_items), self.items_df)
            low, high = (of_seeds, high) if above else (low, of_seeds)
        return two_sided_p(math.exp(low), self.seeds_df)


def noise_of(arms: Sequence[Floats], cluster_N: Ints) -> Noise:
    """The noise of the mean of one array [S, N], or of the difference of the means of two whose seeds are unrelated.

    An array of one seed adds no variance of seeds: the result then holds for that one training only.
    """
    signs = (1.0, -1.0)
    item_N = np.sum([sign * arm_SN.mean(axis=0) for sign, arm_SN in zip(signs, arms, strict=False)], axis=0)
    items = clustered_mean(item_N, cluster_N)
    several = [arm_SN for arm_SN in arms if len(arm_SN) > 1]
    if not several:
        return Noise(items.variance, items.df)
    seeds = [float(arm_SN.mean(axis=1).var(ddof=1)) / len(arm_SN) for arm_SN in several]
    freedom = sum(part**2 / (len(arm_SN) - 1) for part, arm_SN in zip(seeds, several, strict=True))  # Welch's
    seeds_df = sum(seeds) ** 2 / freedom if freedom else math.inf
    rest = sum(_rest(arm_SN, cluster_N) for arm_SN in several)
    return Noise(items.variance, items.df, sum(seeds), seeds_df, rest)


def _rest(arm_SN: Floats, cluster_N: Ints) -> float:
    """σ²_rest/(SN), by clusters: of what neither the seed's mean nor the item's explains."""
    seeds = len(arm_SN)
    rest_SN = arm_SN - arm_SN.mean(axis=1, keepdims=True) - arm_SN.mean(axis=0) + arm_SN.mean()
    return sum(variance_of_mean(rest_N, cluster_N) for rest_N in rest_SN) / (seeds * (seeds - 1))
