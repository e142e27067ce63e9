"""Two sides on one task: their difference, and its result once its p is adjusted for all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.matrix_cell import MatrixItem
from schemas.matrix_comparison import CHANGED, PairResult, Side, TaskColumn
from trainer.matrix.statistics.inference import Inference, difference
from trainer.matrix.statistics.paired_scores import PairedScores, paired
from trainer.matrix.statistics.power import detectable, items_needed, seeds_needed
from trainer.matrix.statistics.sides import only, same_seeds
from trainer.matrix.statistics.wording import sentence, verdict


@dataclass(frozen=True)
class Pair:
    """A difference a - b before its p is adjusted; the sides have only the models that did the task."""

    a: Side
    b: Side
    column: TaskColumn
    scores: PairedScores  # of a's models, then of b's
    found: Inference


def pair_of(
    a: Side, b: Side, column: TaskColumn, read: Mapping[str, Sequence[MatrixItem]], resamples: int
) -> Pair | None:
    """The difference on the items that all models of both sides have; None if there are fewer than two."""
    a_here, b_here = only(a, read), only(b, read)
    if a_here is None or b_here is None:
        return None
    models = [*a_here.models, *b_here.models]
    scores = paired({name: read[name] for name in models}, column.measure, column.name)
    if len(scores.ids) < 2:
        return None
    a_SN, b_SN = np.split(scores.score_MN, [len(a_here.models)])
    found = difference(a_SN, b_SN, scores.cluster_N, same_seeds(a_here, b_here), resamples)
    return Pair(a_here, b_here, column, scores, found)


def result_of(pair: Pair, p_holm: float, tests: int) -> PairResult:
    """The pair in numbers and words; ``tests``: how many the p was adjusted for."""
    found, column = pair.found, pair.column
    items, seeds = len(pair.scores.ids), [len(pair.a.models), len(pair.b.models)]
    said = verdict(found.value, found.low, found.high, p_holm, column.higher_is_better)
    unclear, several = said == "cannot tell", [count for count in seeds if count > 1]
    per_arm = len(several) / sum(1 / count for count in several) if several else 1.0  # harmonic mean
    better_N = _better(pair)
    most = [index for index in np.argsort(-np.abs(better_N), kind="stable")[:CHANGED] if better_N[index]]
    result = PairResult(
        a=pair.a.name,
        b=pair.b.name,
        task=column.name,
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=p_holm,
        verdict=said,
        words="",
        covers=found.covers,
        method=found.method,
        items=items,
        clusters=pair.scores.clusters,
        seeds_a=seeds[0],
        seeds_b=seeds[1],
        seeds_paired=same_seeds(pair.a, pair.b),
        detectable=detectable(found),
        items_needed=items_needed(found, items, tests) if unclear else None,
        seeds_needed=seeds_needed(found, per_arm, tests) if unclear else None,
        a_better=int((better_N > 0).sum()),
        b_better=int((better_N < 0).sum()),
        changed=[pair.scores.ids[index] for index in most],
    )
    return result.model_copy(update={"words": sentence(result, column.unit, tests)})


def _better(pair: Pair) -> np.ndarray:
    """By how much a is better, by item [N]."""
    a_SN, b_SN = np.split(pair.scores.score_MN, [len(pair.a.models)])
    return (a_SN.mean(axis=0) - b_SN.mean(axis=0)) * (1 if pair.column.higher_is_better else -1)
