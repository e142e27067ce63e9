"""What a plan says before anything runs."""

from pathlib import Path

import pytest

from schemas.matrix_cell import MatrixCell, Measure
from schemas.matrix_file import CellCost
from support.small_matrix import matrix_config, write_small_matrix
from trainer.matrix.cell_files import write_cell
from trainer.matrix.matrix_plan import PlannedCell, plan_matrix, shown_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_matrix(tmp_path_factory.mktemp("plan"))


def finish(cell: PlannedCell, seconds: float) -> None:
    cell.place.folder.mkdir(parents=True, exist_ok=True)
    done = MatrixCell(
        model=cell.order.model_entry, task=cell.order.task_entry, measures=[Measure(name="kl", value=1.0)]
    )
    write_cell(cell.place, done, None, CellCost(seconds=seconds, peak_bytes=1))


def test_cost_is_said_where_another_model_has_shown_it(folder: Path, tmp_path: Path) -> None:
    plan = plan_matrix(matrix_config(folder, tmp_path / "out"))
    names = [f"documents {task} × {model}" for task in (0, 1) for model in ("teacher", "student 1", "student 2")]
    assert [cell.name for cell in plan.cells] == names
    assert shown_plan(plan) == {"cells": 6, "done": 0, "missing": names, "cells of unknown cost": 6}
    finish(plan.cells[0], 90)
    shown = shown_plan(plan)
    assert shown == {"cells": 6, "done": 1, "missing": names[1:], "estimated minutes": 3.0, "cells of unknown cost": 3}
    for cell in plan.cells[1:]:
        finish(cell, 1)
    assert shown_plan(plan) == {"cells": 6, "done": 6, "missing": []}
