"""Which method judges which scores: one mean or one difference, with its interval, its p and its noise."""

import math
from dataclasses import dataclass, replace

import numpy as np

from schemas.matrix_comparison import Covers
from trainer.matrix.statistics.clustered import Floats, Ints
from trainer.matrix.statistics.resampling import RESAMPLES, bootstrap_mean
from trainer.matrix.statistics.right_or_wrong import mcnemar_p, paired_share_interval, share_interval
from trainer.matrix.statistics.two_levels import Noise, noise_of

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 10  # clusters; fewer resample badly
BOOTSTRAP_TO = 2_000  # clusters; the mean of more is normal for all that a bootstrap can see


@dataclass(frozen=True)
class Inference:
    """A mean or a difference at 95 %."""

    value: float
    low: float
    high: float
    p: float  # of a value of 0, two-sided
    noise: Noise
    covers: Covers
    method: str


def mean_over(score_SN: Floats, cluster_N: Ints) -> Inference:
    """The mean of scores of S seeds on N items of at least two clusters; ``p`` is of no use here."""
    if len(score_SN) == 1 and _right_or_wrong(score_SN):
        return _share(score_SN[0], cluster_N)
    return _of_noise([score_SN], cluster_N) if len(score_SN) > 1 else _of_items(score_SN[0], cluster_N, RESAMPLES)


def difference(
    a_SN: Floats, b_SN: Floats, cluster_N: Ints, seeds_paired: bool, resamples: int = RESAMPLES
) -> Inference:
    """The mean of ``a_SN`` less that of ``b_SN``, on the same N items of at least two clusters.

    seeds_paired: row s of both has one seed; else the numbers of rows may differ.
    """
    if max(len(a_SN), len(b_SN)) > 1:
        if not seeds_paired:
            return _of_noise([a_SN, b_SN], cluster_N)
        paired = _of_noise([a_SN - b_SN], cluster_N)
        return replace(paired, method=f"{paired.method}, seeds paired")
    if _right_or_wrong(a_SN) and _right_or_wrong(b_SN):
        alone = _units(cluster_N) == "items"
        return _mcnemar(a_SN[0], b_SN[0], cluster_N) if alone else _of_noise([a_SN - b_SN], cluster_N)
    return _of_items(a_SN[0] - b_SN[0], cluster_N, resamples)


def _right_or_wrong(score_SN: Floats) -> bool:
    return bool(np.isin(score_SN, (0.0, 1.0)).all())


def _units(cluster_N: Ints) -> str:
    return "items" if int(cluster_N.max()) + 1 == len(cluster_N) else "clusters"


def _of_noise(arms: list[Floats], cluster_N: Ints) -> Inference:
    """Student's t on the noise of items and, where there are several, of seeds."""
    noise = noise_of(arms, cluster_N)
    value = float(arms[0].mean()) - (float(arms[1].mean()) if len(arms) > 1 else 0.0)
    half = noise.quantile(1 - CONFIDENCE) * noise.error
    covers: Covers = "items"
    method = f"Student's t over {_units(cluster_N)}"
    if any(len(arm_SN) > 1 for arm_SN in arms):
        covers, method = "seeds and items", f"seeds × {_units(cluster_N)}, Student's t weighted as Cochran's"
    return Inference(value, value - half, value + half, noise.p_value(value), noise, covers, method)


def _of_items(value_N: Floats, cluster_N: Ints, resamples: int) -> Inference:
    """Studentised bootstrap; Student's t where there are too few or very many clusters, or almost all values agree."""
    if not BOOTSTRAP_FROM <= int(cluster_N.max()) + 1 <= BOOTSTRAP_TO:
        return _of_noise([value_N[None]], cluster_N)
    half, p = bootstrap_mean(value_N, cluster_N, CONFIDENCE, resamples)
    if math.isinf(half):
        return _of_noise([value_N[None]], cluster_N)
    mean, noise = float(value_N.mean()), noise_of([value_N[None]], cluster_N)
    method = f"studentised bootstrap over {_units(cluster_N)}"
    return Inference(mean, mean - half, mean + half, p, noise, "items", method)


def _mcnemar(a_N: Floats, b_N: Floats, cluster_N: Ints) -> Inference:
    only_a, only_b = int((a_N > b_N).sum()), int((b_N > a_N).sum())
    low, high = paired_share_interval(only_a, only_b, len(a_N), CONFIDENCE)
    noise = noise_of([(a_N - b_N)[None]], cluster_N)
    method = "exact McNemar; interval of Bonett and Price"
    return Inference((only_a - only_b) / len(a_N), low, high, mcnemar_p(only_a, only_b), noise, "items", method)


def _share(right_N: Floats, cluster_N: Ints) -> Inference:
    """Wilson's interval, at the number of independent items that would give the clustered variance."""
    noise = noise_of([right_N[None]], cluster_N)
    share, variance = float(right_N.mean()), noise.items
    clusters = int(cluster_N.max()) + 1
    effective = min(share * (1 - share) / variance, len(right_N)) if variance else clusters
    df = math.inf if clusters == len(right_N) else noise.items_df
    low, high = share_interval(share, effective, Noise(variance, df).quantile(1 - CONFIDENCE))
    method = f"Wilson over {_units(cluster_N)}"
    return Inference(share, low, high, noise.p_value(share), noise, "items", method)
