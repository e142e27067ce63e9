"""How often the intervals of a matrix cover the true difference, and how often they see one where there is none.

Synthetic scores with a known difference (``benchmarks/support/synthetic_scores.py``), for each method in its intended
setting, drawn 2,000 times with the difference and 2,000 times without: enough to tell 95 % from 94.0 and from 96.0 %.
Beside them, without bars, what else one might do: resample seeds and items for percentiles, Satterthwaite's degrees
of freedom, one seed, clusters left out, few clusters of skewed scores.
"""

import math
import sys
from functools import cache, partial
from itertools import product

import numpy as np

from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.synthetic_scores import (
    LEVELS,
    Levels,
    Scores,
    Setting,
    arms,
    right_or_wrong,
    right_or_wrong_by_subject,
    settings,
    skewed,
)
from trainer.matrix.statistics.clustered import Floats
from trainer.matrix.statistics.holm import holm
from trainer.matrix.statistics.inference import difference, mean_over
from trainer.matrix.statistics.power import detectable
from trainer.matrix.statistics.student_t import critical

DRAWS, RESAMPLES = 2_000, 999
LOWEST, HIGHEST, MOST_FALSE = 93.0, 97.0, 6.0
TASKS, MODELS = 12, 3
SHARES_OF_SEEDS, SHARES_OF_REST = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1), (0, 0.1, 0.3, 0.5, 0.8, 1)
MEAN_SQUARES = 200_000


def main() -> int:
    """Run the benchmark; returns the exit status."""
    rows: list[Row] = []
    raw = {}
    for setting in settings():
        found = coverage(setting, DRAWS)
        rows.append(between(f"{setting.name}: covered", found["covered"], LOWEST, HIGHEST))
        rows.append(at_most("… false positives", found["false"], "%", MOST_FALSE))
        raw[setting.name] = {**found, "difference": setting.difference}
        print(setting.name, found, flush=True)
    rows += [*cells(DRAWS), *powers(DRAWS), family(DRAWS), *alternatives(DRAWS), *quantiles()]
    title = f"Intervals at 95 % and tests at 5 %, {DRAWS:,} draws with a difference and {DRAWS:,} without"
    write_results("interval_coverage", title, rows, {"settings": raw, "resamples": RESAMPLES})
    return exit_status(rows)


def between(what: str, percent: float, low: float, high: float) -> Row:
    """A row with two limits."""
    return Row(what, percent, "%", f"{low:g} to {high:g}", bool(low <= percent <= high))


def coverage(setting: Setting, draws: int, seed: int = 0) -> dict[str, float]:
    """Percent of intervals that hold the true difference, and of tests that find one where there is none."""
    rng = np.random.default_rng(seed)
    covered = false = 0
    for _ in range(draws):
        found = difference(*setting.draw(rng, True), setting.seeds_paired, RESAMPLES)
        covered += found.low <= setting.difference <= found.high
        false += difference(*setting.draw(rng, False), setting.seeds_paired, RESAMPLES).p <= 0.05
    return {"covered": 100 * covered / draws, "false": 100 * false / draws}


def cells(draws: int) -> list[Row]:
    """Intervals of single cells: of independent items by exact sums, in clusters by draws of a share for each."""
    found_X = [exact_coverage(share, 100) for share in np.linspace(0.02, 0.98, 49)]
    rng = np.random.default_rng(1)
    cluster_N = np.repeat(np.arange(30), 10)
    covered = 0
    for _ in range(draws):
        right_N = (rng.random(300) < rng.beta(5.6, 2.4, 30)[cluster_N]).astype(np.float64)
        found = mean_over(right_N[None], cluster_N)
        covered += found.low <= 0.7 <= found.high
    return [
        between("one model, 100 items, 2 to 98 % right: mean coverage", float(np.mean(found_X)), LOWEST, HIGHEST),
        between("… lowest coverage", min(found_X), LOWEST, HIGHEST),
        between("one model, 70 % right, 30 clusters of 10: covered", 100 * covered / draws, LOWEST, HIGHEST),
    ]


@cache
def intervals_of_shares(items: int) -> list[tuple[float, float]]:
    """The interval for each number of items that may be right."""
    order_N = np.arange(items)
    found = [mean_over((order_N < right).astype(np.float64)[None], order_N) for right in range(items + 1)]
    return [(each.low, each.high) for each in found]


def exact_coverage(share: float, items: int) -> float:
    """Percent of intervals that hold ``share``, each number right with its binomial probability."""
    return 100 * sum(
        math.comb(items, right) * share**right * (1 - share) ** (items - right)
        for right, (low, high) in enumerate(intervals_of_shares(items))
        if low <= share <= high
    )


def powers(draws: int) -> list[Row]:
    """How often a difference is found that is said to be detectable, by the median of 200 comparisons."""
    rows = []
    for name, seeds in (("200 documents", 1), ("5 seeds × 200 documents", 5)):
        rng = np.random.default_rng(2)
        draw = partial(arms, rng, False, LEVELS["noise of both"], (seeds, seeds), 200)
        size = float(np.median([detectable(difference(*draw(), True, RESAMPLES)) for _ in range(200)]))
        found = 0
        for _ in range(draws):
            a_SN, b_SN, cluster_N = draw()
            found += difference(a_SN + size, b_SN, cluster_N, True, RESAMPLES).p <= 0.05
        rows.append(between(f"{name}: detectable differences that are found", 100 * found / draws, 70, 90))
    return rows


def family(draws: int) -> Row:
    """Whole matrices of models that do not differ in which a pair is said to differ on some task."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(draws):
        p_values = []
        for _ in range(TASKS):
            easy_N = rng.beta(1, 1, 300)
            right = [(rng.random((1, 300)) < easy_N).astype(np.float64) for _ in range(MODELS)]
            pairs = [(0, 1), (0, 2), (1, 2)]
            p_values += [difference(right[a], right[b], np.arange(300), False).p for a, b in pairs]
        false += min(holm(p_values)) <= 0.05
    what = f"{MODELS} equal models, {TASKS} tasks, Holm: matrices with a false positive"
    return at_most(what, 100 * false / draws, "%", MOST_FALSE)


def alternatives(draws: int) -> list[Row]:
    """What other methods cover."""
    half, seeds_mostly = LEVELS["noise of both"], LEVELS["noise of seeds"]
    subjects = np.random.default_rng(57).integers(10, 150, 57)
    few = partial(skewed, sizes=np.full(12, 20), spread=0.8)
    return [
        Row(f"3 seeds, {name}: percentiles of resampled seeds and items cover", percentiles(levels, 3, draws), "%")
        for name, levels in (("noise of both", half), ("noise of seeds", seeds_mostly))
    ] + [
        Row("1 seed, noise of both: covers the difference over all seeds", one_seed(half, draws), "%"),
        Row("1 seed, noise of seeds: covers the difference over all seeds", one_seed(seeds_mostly, draws), "%"),
        Row("57 subjects, taken as independent items: covered", unclustered(subjects, draws), "%"),
        Row("12 clusters of very skewed scores: covered", coverage(Setting("", few, 0.05), draws)["covered"], "%"),
        Row(
            "0/1, 20 items: covered",
            coverage(Setting("", partial(right_or_wrong, items=20), 0.03), draws)["covered"],
            "%",
        ),
    ]


def percentiles(levels: Levels, seeds: int, draws: int) -> float:
    """Percent that the percentile bootstrap over both levels covers."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(draws):
        a_SN, b_SN, _ = arms(rng, True, levels, (seeds, seeds), 200)
        change_SN = a_SN - b_SN
        seed_BS = rng.integers(0, seeds, (1_000, seeds))
        item_BN = rng.integers(0, 200, (1_000, 200))
        weight_BS = (seed_BS[:, :, None] == np.arange(seeds)).mean(axis=1)
        mean_B = np.take_along_axis(weight_BS @ change_SN, item_BN, axis=1).mean(axis=1)
        low, high = np.quantile(mean_B, [0.025, 0.975])
        covered += low <= 0.2 <= high
    return 100 * covered / draws


def one_seed(levels: Levels, draws: int) -> float:
    """Percent of intervals of two single students that hold the difference of the recipes behind them."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(draws):
        a_SN, b_SN, cluster_N = arms(rng, True, levels, (2, 2), 200)
        found = difference(a_SN[:1], b_SN[:1], cluster_N, True, RESAMPLES)
        covered += found.low <= 0.2 <= found.high
    return 100 * covered / draws


def unclustered(sizes: np.ndarray, draws: int) -> float:
    """Percent covered if every item is a cluster of its own."""

    def draw(rng: np.random.Generator, effect: bool) -> Scores:
        a_SN, b_SN, cluster_N = right_or_wrong_by_subject(rng, effect, sizes)
        return a_SN, b_SN, np.arange(len(cluster_N))

    return coverage(Setting("", draw, 0.03), draws)["covered"]


def quantiles() -> list[Row]:
    """Lowest and highest coverage of ways to choose the quantile, over all shares of the variance.

    Of normal scores the three mean squares are independent and χ² distributed, so they are drawn themselves.
    """
    rows = []
    for seeds in (2, 3, 5):
        found: dict[str, list[float]] = {}
        for n, of_seeds, of_rest in product((30, 200), SHARES_OF_SEEDS, SHARES_OF_REST):
            for name, percent in of_mean_squares(seeds, n, of_seeds, of_rest).items():
                found.setdefault(name, []).append(percent)
        rows += [
            Row(f"{seeds} seeds, {name}: {end} coverage, any noise", of(percents), "%")
            for name, percents in found.items()
            for end, of in (("lowest", min), ("highest", max))
        ]
    return rows


def of_mean_squares(seeds: int, n: int, of_seeds: float, of_rest: float) -> dict[str, float]:
    """Percent covered by each quantile; seeds make ``of_seeds`` of a variance of 1, rest ``of_rest`` of the others."""
    rng = np.random.default_rng(6)
    rest = (1 - of_seeds) * of_rest

    def mean_squares(expected: float, df: int) -> Floats:
        return expected * rng.chisquare(df, MEAN_SQUARES) / df

    seeds_R = mean_squares(of_seeds + rest, seeds - 1)
    items_R = mean_squares(1 - of_seeds, n - 1)
    all_R = seeds_R + np.maximum(items_R - mean_squares(rest, (seeds - 1) * (n - 1)), 0)
    weight_R = seeds_R / all_R
    t_seeds, t_items = critical(0.05, float(seeds - 1)), critical(0.05, float(n - 1))
    df_R = 1 / (weight_R**2 / (seeds - 1) + (1 - weight_R) ** 2 / (n - 1))
    grid_X = np.geomspace(1, 1e4, 400)
    satterthwaite_R = np.interp(np.log(df_R), np.log(grid_X), [critical(0.05, float(df)) for df in grid_X])
    quantile = {
        "this": t_seeds**weight_R * t_items ** (1 - weight_R),
        "Cochran": weight_R * t_seeds + (1 - weight_R) * t_items,
        "Satterthwaite": satterthwaite_R,
    }
    mean_R = np.abs(rng.normal(0, 1, MEAN_SQUARES))
    return {name: 100 * float((mean_R <= t_R * np.sqrt(all_R)).mean()) for name, t_R in quantile.items()}


if __name__ == "__main__":
    sys.exit(main())
