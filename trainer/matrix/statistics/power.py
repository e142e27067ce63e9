"""What a comparison could have found, and what it would take to find the difference seen.

Power is 80 %: of 100 such comparisons, 80 would find a difference of that size. A true difference of (critical t + t of
the power) standard errors has it (Bloom 1995). The difference seen is itself uncertain: the numbers needed are rough.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from trainer.matrix.statistics.inference import CONFIDENCE, Inference
from trainer.matrix.statistics.two_levels import Noise

POWER = 0.8
NORMAL_FROM = 300  # degrees of freedom, for planning
MOST_ITEMS, MOST_SEEDS = 1_000_000_000, 1_000


def detectable(found: Inference) -> float:
    """The smallest true difference that this comparison finds with a power of 80 %, tested alone at two-sided 5 %."""
    return (found.high - found.low) / 2 + found.noise.quantile(2 * (1 - POWER)) * found.noise.error


def items_needed(found: Inference, items: int, tests: int = 1) -> int | None:
    """Items, of the same kind and in clusters as large, that find the difference seen among ``tests`` (Bonferroni).

    None if there is no difference, or seeds alone are too noisy for it.
    """
    if not found.value:
        return None

    def enough(n: int) -> bool:
        return finds(with_items(found.noise, n / items), found.value, tests)

    return _smallest(enough, 2, MOST_ITEMS)


def seeds_needed(found: Inference, seeds: float, tests: int = 1) -> int | None:
    """Seeds of each arm, which now has ``seeds``, that find the difference seen among ``tests`` on the same items.

    None if there is no difference, items alone are too noisy for it, or nothing tells how seeds differ.
    """
    if not found.value or not found.noise.seeds:
        return None

    now = with_items(found.noise, 1)
    df_per_seed = min(max(now.seeds_df / (seeds - 1), 1.0), 2.0)  # 1 if the seeds are paired, up to 2 if not

    def enough(n: int) -> bool:
        more = replace(now, seeds=now.seeds * seeds / n, seeds_df=float(round(df_per_seed * (n - 1))))
        return finds(more, found.value, tests)

    return _smallest(enough, 2, MOST_SEEDS)


def with_items(noise: Noise, times: float) -> Noise:
    """The noise of ``times`` as many items, in clusters of the same size."""
    of_seeds = max(noise.seeds - noise.rest, 0.0) + min(noise.rest, noise.seeds) / times
    df = max(noise.items_df * times, 1.0)
    return Noise(noise.of_items / times, df if df < NORMAL_FROM else math.inf, of_seeds, noise.seeds_df)


def finds(noise: Noise, value: float, tests: int) -> bool:
    """Whether the strictest of ``tests`` (Bonferroni) finds a difference of ``value`` with a power of 80 %."""
    wanted = noise.quantile((1 - CONFIDENCE) / tests) + noise.quantile(2 * (1 - POWER))
    return abs(value) >= wanted * noise.error


def _smallest(holds: Callable[[int], bool], first: int, last: int) -> int | None:
    """The smallest number from ``first`` to ``last`` for which ``holds`` is true, as it is for all after it."""
    high = first
    while not holds(high):
        if high >= last:
            return None
        high = min(2 * high, last)
    low = max(first - 1, high // 2 if high > first else first - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
