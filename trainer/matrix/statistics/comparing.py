"""A whole matrix compared: every pair of models or arms on every task, as one family of tests."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from schemas.errors import UserError
from schemas.matrix_cell import MatrixCell, MatrixItem
from schemas.matrix_comparison import MatrixComparison, TaskColumn
from trainer.matrix.statistics.estimates import Read, notes_on_values, of_cell, of_side
from trainer.matrix.statistics.holm import holm
from trainer.matrix.statistics.inference import CONFIDENCE
from trainer.matrix.statistics.paired_scores import paired
from trainer.matrix.statistics.pairs import pair_of, result_of
from trainer.matrix.statistics.power import POWER
from trainer.matrix.statistics.resampling import RESAMPLES
from trainer.matrix.statistics.sides import notes_on_seeds, only, sides_of

Items = Mapping[tuple[str, str], Sequence[MatrixItem]]  # by names of model and task
RESAMPLES_PER_TEST = 100  # the smallest p of a bootstrap stays far below 5 % after Holm


def compare(
    cells: Sequence[MatrixCell], items: Items, pairs: Sequence[tuple[str, str]] | None = None
) -> MatrixComparison:
    """Estimates of all cells, and the differences of sides on all tasks with items.

    items: of the cells that have them. They are looked up one task after another, so that a mapping may read them then.
    pairs: names of sides (arms, or models on their own), (a, b) for a - b; None for all, in the order of the cells.
    Holm's adjustment rewards fewer: name those that were of interest beforehand.

    Raises UserError for cells that cannot be compared.
    """
    sides = {side.name: side for side in sides_of([cell.model for cell in cells])}
    wanted = _wanted(pairs, list(sides))
    by_task = _by_task(cells)
    tests = len(wanted) * sum(any(cell.items for cell in of_task.values()) for of_task in by_task.values())
    resamples = max(RESAMPLES, RESAMPLES_PER_TEST * tests)

    columns, of_cells, of_sides, found = [], [], [], []
    notes = notes_on_seeds(list(sides.values()))
    for task, of_task in by_task.items():
        read = {name: items[name, task] for name, cell in of_task.items() if cell.items is not None}
        column = _column(of_task, read)
        columns.append(column)
        for cell in of_task.values():
            of_cells += [of_cell(cell, measure, read) for measure in cell.measures]
            notes += notes_on_values(cell, read)
        compared = {each.name: each for each in of_cells if (each.task, each.measure) == (task, column.measure)}
        of_sides += [of_side(here, of_task, read, compared) for side in sides.values() if (here := only(side, of_task))]
        for a, b in wanted if read else []:
            pair = pair_of(sides[a], sides[b], column, read, resamples)
            if pair is not None:
                found.append(pair)
            else:
                notes.append(f"{task}: {a} and {b} have fewer than two items in common; not compared")
    adjusted = holm([pair.found.p for pair in found])
    return MatrixComparison(
        confidence=CONFIDENCE,
        power=POWER,
        tests=len(found),
        sides=list(sides.values()),
        tasks=columns,
        cells=of_cells,
        estimates=of_sides,
        pairs=[result_of(pair, p_holm, len(found)) for pair, p_holm in zip(found, adjusted, strict=True)],
        notes=notes,
    )


def _wanted(pairs: Sequence[tuple[str, str]] | None, sides: list[str]) -> list[tuple[str, str]]:
    if pairs is None:
        return list(combinations(sides, 2))
    for pair in pairs:
        for name in pair:
            if name not in sides:
                raise UserError(f"pair {' - '.join(pair)}: no arm or model is named {name}; known: {', '.join(sides)}")
        if pair[0] == pair[1]:
            raise UserError(f"pair {' - '.join(pair)}: one side twice; name two")
    return list(pairs)


def _by_task(cells: Sequence[MatrixCell]) -> dict[str, dict[str, MatrixCell]]:
    """Cells by task and model; raises UserError for two of one kind, and for a name that means two tasks."""
    by_task: dict[str, dict[str, MatrixCell]] = {}
    for cell in cells:
        model, task = cell.model.name, cell.task
        of_task = by_task.setdefault(task.name, {})
        if model in of_task:
            raise UserError(f"task {task.name}: two cells of model {model}; give one of them")
        first = next(iter(of_task.values()), cell)
        if task != first.task:
            raise UserError(
                f"task {task.name}: {model} ran {task.digest[:12]}, {first.model.name} {first.task.digest[:12]}: other "
                "settings, data or programs; run one of them again"
            )
        seen, wanted = cell.measures[0], first.measures[0]
        if (seen.name, seen.unit, seen.higher_is_better) != (wanted.name, wanted.unit, wanted.higher_is_better):
            raise UserError(
                f"task {task.name}: the first measure of {model} is {seen.name} ({seen.unit or 'share'}), that of "
                f"{first.model.name} {wanted.name} ({wanted.unit or 'share'}); run one of them again"
            )
        of_task[model] = cell
    return by_task


def _column(of_task: Mapping[str, MatrixCell], read: Read) -> TaskColumn:
    cell = next(iter(of_task.values()))
    measure = cell.measures[0]
    scores = paired(read, measure.name, cell.task.name) if read else None
    return TaskColumn(
        name=cell.task.name,
        digest=cell.task.digest,
        ability=cell.task.ability,
        kind=cell.task.kind,
        measure=measure.name,
        unit=measure.unit,
        higher_is_better=measure.higher_is_better,
        chance=measure.chance,
        items=len(scores.ids) if scores is not None else 0,
        clusters=scores.clusters if scores is not None else 0,
    )
