"""Scores of two models, or of two arms of students, whose true difference is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from trainer.matrix.statistics.clustered import Floats, Ints

Scores = tuple[Floats, Floats, Ints]  # a_SN, b_SN, cluster_N


@dataclass(frozen=True)
class Setting:
    """How scores are drawn. ``draw(rng, effect)`` gives them with the true difference, or with none at all."""

    name: str
    draw: Callable[[np.random.Generator, bool], Scores]
    difference: float  # of the expectations of a and b over everything that is drawn, if there is an effect
    seeds_paired: bool = False


def right_or_wrong(rng: np.random.Generator, effect: bool, items: int) -> Scores:
    """A quarter of the items is right for one model only; 3 points."""
    shift = 0.015 if effect else 0.0
    kind_N = rng.choice(4, items, p=[0.5, 0.25, 0.125 + shift, 0.125 - shift])
    return _row((kind_N == 0) | (kind_N == 2)), _row((kind_N == 0) | (kind_N == 3)), np.arange(items)


def right_or_wrong_by_subject(rng: np.random.Generator, effect: bool, sizes: Ints) -> Scores:
    """The same, but each subject has a difference of its own, with a standard deviation of 8 points; 3 points."""
    cluster_N = np.repeat(np.arange(len(sizes)), sizes)
    own_G = np.clip(rng.normal(0, 0.04, len(sizes)), -0.1, 0.1) + (0.015 if effect else 0.0)
    draw_N = rng.random(len(cluster_N))
    only_a_N = draw_N < 0.125 + own_G[cluster_N]
    only_b_N = draw_N > 0.875 + own_G[cluster_N]
    both_N = rng.random(len(cluster_N)) < 0.7
    return _row(only_a_N | (both_N & ~only_b_N)), _row(only_b_N | (both_N & ~only_a_N)), cluster_N


def skewed(rng: np.random.Generator, effect: bool, sizes: Ints, spread: float = 0.8) -> Scores:
    """Cross-entropies of documents, log-normal, with differences that are skewed and shared within a cluster; 0.05."""
    cluster_N = np.repeat(np.arange(len(sizes)), sizes)
    base_N = rng.lognormal(0, 0.5, len(cluster_N))
    own_N = rng.lognormal(0, spread, len(cluster_N)) + rng.lognormal(0, spread, len(sizes))[cluster_N]
    change_N = 0.1 * (own_N - 2 * math.exp(spread**2 / 2)) + (0.05 if effect else 0.0)
    return _row(base_N + change_N), _row(base_N), cluster_N


def pass_at_k(rng: np.random.Generator, effect: bool, k: int, problems: int = 164, samples: int = 20) -> Scores:
    """The unbiased estimate (Chen et al., arXiv 2107.03374) from 20 samples of each of HumanEval's 164 problems."""
    hard_N = rng.normal(-1, 2.5, problems)
    logits = [hard_N + rng.normal(0, 0.7, problems) + shift for shift in (0.5 if effect else 0.0, 0.0)]
    right = [rng.binomial(samples, 1 / (1 + np.exp(-logit_N))) for logit_N in logits]
    fails_K = np.array([math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)])
    return _row(1 - fails_K[right[0]]), _row(1 - fails_K[right[1]]), np.arange(problems)


@dataclass(frozen=True)
class Levels:
    """Standard deviations of the difference: of seeds, of items, and of one seed on one item."""

    seeds: float
    items: float
    rest: float


def arms(rng: np.random.Generator, effect: bool, levels: Levels, seeds: tuple[int, int], items: int) -> Scores:
    """Real scores of two arms of students on the same documents; 0.2. An arm of one is a model as it is."""
    item_N = rng.normal(0, 3, items)
    half = math.sqrt(0.5)  # of each arm's variance
    shift_N = rng.normal(0, levels.items, items) + (0.2 if effect else 0.0)
    drawn = [
        item_N
        + rng.normal(0, half * levels.seeds if count > 1 else 0, (count, 1))
        + rng.normal(0, half * levels.rest, (count, items))
        for count in seeds
    ]
    return drawn[0] + shift_N, drawn[1], np.arange(items)


def right_or_wrong_arms(rng: np.random.Generator, effect: bool, seeds: int, sizes: Ints) -> Scores:
    """Answers of two arms: logits of items, of arms on items and subjects, of seeds, and a coin for each answer."""
    cluster_N = np.repeat(np.arange(len(sizes)), sizes)
    items = len(cluster_N)
    item_N = rng.normal(0.5, 1.5, items)
    arms_ = []
    for shift in (0.3 if effect else 0.0, 0.0):
        arm_N = rng.normal(0, 0.5, items) + rng.normal(0, 0.3, len(sizes))[cluster_N] + shift
        logit_SN = item_N + arm_N + rng.normal(0, 0.15, (seeds, 1))
        arms_.append((rng.random((seeds, items)) < 1 / (1 + np.exp(-logit_SN))).astype(np.float64))
    return arms_[0], arms_[1], cluster_N


def settings() -> list[Setting]:
    """One for each method in its intended setting."""
    rng = np.random.default_rng(57)
    subjects, few = rng.integers(10, 150, 57), rng.integers(10, 60, 8)
    one = np.ones
    found = [
        Setting("0/1, 1,000 items", partial(right_or_wrong, items=1000), 0.03),
        Setting("0/1, 100 items", partial(right_or_wrong, items=100), 0.03),
        Setting("0/1, 57 subjects of 10 to 150 items", partial(right_or_wrong_by_subject, sizes=subjects), 0.03),
        Setting("0/1, 8 subjects of 10 to 60 items", partial(right_or_wrong_by_subject, sizes=few), 0.03),
        Setting("real scores, 200 documents", partial(skewed, sizes=one(200, np.int64)), 0.05),
        Setting("real scores, 40 clusters of 5", partial(skewed, sizes=np.full(40, 5), spread=0.5), 0.05),
        Setting("real scores, 12 clusters of 20", partial(skewed, sizes=np.full(12, 20), spread=0.2), 0.05),
        Setting("real scores, 6 clusters of 40", partial(skewed, sizes=np.full(6, 40), spread=0.2), 0.05),
    ]
    for k in (1, 10):
        passed = partial(passes, k=k)
        truth = mean_over_normal(passed, -0.5, PROBLEM) - mean_over_normal(passed, -1, PROBLEM)
        found.append(Setting(f"pass@{k}, 164 problems, 20 samples", partial(pass_at_k, k=k), truth))
    for name, levels in LEVELS.items():
        for count in (3, 5):
            draw_arms = partial(arms, levels=levels, seeds=(count, count), items=200)
            found.append(Setting(f"{count} seeds × 200 documents, {name}", draw_arms, 0.2, seeds_paired=True))
    half = LEVELS["noise of both"]
    found += [
        Setting("3 seeds against 5 others × 200 documents", partial(arms, levels=half, seeds=(3, 5), items=200), 0.2),
        Setting("5 seeds against one given model", partial(arms, levels=half, seeds=(5, 1), items=200), 0.2),
    ]
    truth = mean_over_normal(partial(passes, k=1), 0.8, ANSWER) - mean_over_normal(partial(passes, k=1), 0.5, ANSWER)
    for count in (3, 5):
        draw = partial(right_or_wrong_arms, seeds=count)
        found += [
            Setting(f"0/1, {count} seeds × 500 items", partial(draw, sizes=one(500, np.int64)), truth, True),
            Setting(f"0/1, {count} seeds × 30 clusters of 10", partial(draw, sizes=np.full(30, 10)), truth, True),
        ]
    return found


LEVELS = {
    "noise of items": Levels(seeds=0.02, items=2.0, rest=1.0),
    "noise of both": Levels(seeds=0.2, items=1.5, rest=1.0),
    "noise of seeds": Levels(seeds=0.4, items=0.7, rest=0.5),
}


PROBLEM = math.hypot(2.5, 0.7)  # standard deviation of the logit of a problem for a model
ANSWER = math.hypot(1.5, 0.5, 0.3, 0.15)  # of an answer


def passes(logit_X: Floats, k: int) -> Floats:
    """Probability that one of ``k`` samples is right."""
    return 1 - (1 + np.exp(logit_X)) ** -float(k)


def mean_over_normal(function: Callable[[Floats], Floats], mean: float, deviation: float) -> float:
    """Expectation of a smooth function of a normal variable."""
    z_X = np.linspace(-10, 10, 20_001)
    weight_X = np.exp(-(z_X**2) / 2)
    return float((function(mean + deviation * z_X) * weight_X).sum() / weight_X.sum())


def _row(value_N: object) -> Floats:
    return np.asarray(value_N, np.float64)[None]
