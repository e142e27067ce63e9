"""The value of every cell and side with its own interval."""

import math
from collections.abc import Mapping, Sequence

from schemas.matrix_cell import MatrixCell, MatrixItem, Measure
from schemas.matrix_comparison import Estimate, Side
from trainer.matrix.statistics.inference import mean_over
from trainer.matrix.statistics.paired_scores import PairedScores, paired
from trainer.matrix.statistics.wording import value_words

Read = Mapping[str, Sequence[MatrixItem]]  # of one task, by model


def of_cell(cell: MatrixCell, measure: Measure, read: Read) -> Estimate:
    """A measure of a cell; its interval is of the mean of its items, so one that is no such mean has none."""
    model, task = cell.model.name, cell.task.name
    scores = paired({model: read[model]}, measure.name, task) if model in read else None
    if scores is not None and not is_mean(measure, scores):
        scores = None
    return _estimate(model, task, measure, measure.value, 1, scores)


def of_side(side: Side, cells: Mapping[str, MatrixCell], read: Read, of_cells: Mapping[str, Estimate]) -> Estimate:
    """The compared measure of a side over its seeds, on the items that all of its models have.

    of_cells: the estimates of that measure, by model: a side of one model has its model's.
    """
    first = cells[side.models[0]]
    measure, task = first.measures[0], first.task.name
    if len(side.models) == 1:
        return of_cells[side.models[0]].model_copy(update={"name": side.name})
    value = math.fsum(cells[name].measures[0].value for name in side.models) / len(side.models)
    scores = None
    if all(name in read for name in side.models):
        scores = paired({name: read[name] for name in side.models}, measure.name, task)
        value = float(scores.score_MN.mean()) if scores.ids else value
    return _estimate(side.name, task, measure, value, len(side.models), scores)


def notes_on_values(cell: MatrixCell, read: Read) -> list[str]:
    """One line for each measure that its items have, but whose value is not their mean."""
    model, task = cell.model.name, cell.task.name
    if model not in read:
        return []
    return [
        f"{task}, {model}: {measure.name} is not the mean of its items, so it has no interval; pairs compare the means"
        for measure in cell.measures
        if not is_mean(measure, paired({model: read[model]}, measure.name, task))
    ]


def is_mean(measure: Measure, scores: PairedScores) -> bool:
    """Whether the value is the mean of the scores, or there are none."""
    return not scores.ids or math.isclose(measure.value, scores.score_MN.mean(), rel_tol=1e-6, abs_tol=1e-9)


def _estimate(
    name: str, task: str, measure: Measure, value: float, seeds: int, scores: PairedScores | None
) -> Estimate:
    low = high = None
    found = mean_over(scores.score_MN, scores.cluster_N) if scores is not None and len(scores.ids) > 1 else None
    if found is not None:
        low, high = found.low, found.high
        if measure.unit == "":
            low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(
        name=name,
        task=task,
        measure=measure.name,
        unit=measure.unit,
        higher_is_better=measure.higher_is_better,
        value=value,
        low=low,
        high=high,
        covers=found.covers if found else "nothing",
        items=len(scores.ids) if scores is not None else 0,
        clusters=scores.clusters if scores is not None else 0,
        seeds=seeds,
        method=found.method if found else "none: no items",
        words=value_words(value, low, high, measure.unit),
    )
