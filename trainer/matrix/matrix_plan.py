"""The cells of a matrix: all checked before any of them runs, which of them are done, and what the others cost."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.matrix_cell import MatrixCell, ModelEntry, TaskEntry
from schemas.matrix_config import MatrixConfig
from schemas.matrix_file import CellOrder
from schemas.regular_files import read_file
from schemas.teachers_compared import TeachersCompared
from trainer.matrix.cell_files import CellPlace, cell_place, read_cell, read_cost
from trainer.matrix.digests_of_cell import model_entry, task_entry
from trainer.matrix.task_kinds import KINDS

logger = logging.getLogger(__name__)
Made = TypeVar("Made")


@dataclass(frozen=True)
class PlannedCell:
    """One model on one task."""

    order: CellOrder
    place: CellPlace

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.order.task.name} × {self.order.model.name}"

    def done(self) -> MatrixCell | None:
        """The cell, if it is complete, with the names that it has in this matrix."""
        cell = read_cell(self.place)
        if cell is None:
            return None
        return cell.model_copy(update={"model": self.order.model_entry, "task": self.order.task_entry})


@dataclass(frozen=True)
class MatrixPlan:
    """All models, tasks and cells."""

    output: Path
    models: list[ModelEntry]
    tasks: list[TaskEntry]
    cells: list[PlannedCell]  # task after task, of each the models in their order
    teachers: TeachersCompared | None = None


def plan_matrix(config: MatrixConfig) -> MatrixPlan:
    """Check models and tasks. Raises UserError: of several problems each is logged."""
    problems: list[UserError] = []

    def tried(make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except UserError as error:
            problems.append(error)
            return None

    def described(task: Any) -> TaskEntry:
        kind = KINDS[type(task)]
        try:
            kind.check(task)
            return task_entry(task, kind, config.backends)
        except UserError as error:
            raise type(error)(f"tasks: {task.name}: {error}") from None

    models = [tried(lambda model=model: model_entry(model)) for model in config.models]  # type: ignore[misc]
    tasks = [tried(lambda task=task: described(task)) for task in config.tasks]  # type: ignore[misc]
    teachers = tried(lambda: _teachers(config))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        for problem in problems:
            logger.error("%s", problem)
        raise UserError(f"{len(problems)} problems, listed above; nothing was run")
    plan = _cells(config, [each for each in models if each], [each for each in tasks if each])
    return replace(plan, teachers=teachers)


def _teachers(config: MatrixConfig) -> TeachersCompared | None:
    """What ``cache-tools compare`` found, if the matrix names it."""
    if config.teachers is None:
        return None
    text = read_file(config.teachers, what="teachers: cannot read what `cache-tools compare A B --json` printed")
    return parse_json(TeachersCompared, text, config.teachers)


def _cells(config: MatrixConfig, models: list[ModelEntry], tasks: list[TaskEntry]) -> MatrixPlan:
    output = Path(config.output)
    cells = [
        PlannedCell(
            CellOrder(model=model, task=task, backends=config.backends, model_entry=whose, task_entry=what),
            cell_place(output, whose, what),
        )
        for task, what in zip(config.tasks, tasks, strict=True)
        for model, whose in zip(config.models, models, strict=True)
    ]
    return MatrixPlan(output, models, tasks, cells)


def shown_plan(plan: MatrixPlan) -> dict[str, Any]:
    """The plan in numbers: cells by task, and what the missing ones will take as far as others have shown it."""
    missing = [cell for cell in plan.cells if cell.done() is None]
    known = dict(_estimates(plan, missing))
    shown: dict[str, Any] = {"cells": len(plan.cells), "done": len(plan.cells) - len(missing)}
    shown["missing"] = [cell.name for cell in missing]
    if known:
        shown["estimated minutes"] = round(sum(known.values()) / 60, 1)
    if missing:
        shown["cells of unknown cost"] = len(missing) - len(known)
    return shown


def _estimates(plan: MatrixPlan, missing: list[PlannedCell]) -> Iterator[tuple[str, float]]:
    """Seconds of missing cells, from cells of the same task, in proportion to the models' bytes."""
    measured: dict[str, list[float]] = {}
    for cell in plan.cells:
        cost = read_cost(cell.place)
        if cost is not None:
            per_byte = cost.seconds / max(1, cell.order.model_entry.bytes or 1)
            measured.setdefault(cell.place.digest, []).append(per_byte)
    for cell in missing:
        found = measured.get(cell.place.digest)
        if found:
            yield cell.name, max(found) * (cell.order.model_entry.bytes or 1)
