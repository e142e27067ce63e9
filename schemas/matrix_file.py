"""``matrix.json``: all cells of a matrix; and the order that a cell's process is given."""

from typing import Literal

from pydantic import Field

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixCell, ModelEntry, TaskEntry
from schemas.matrix_comparison import MatrixComparison
from schemas.matrix_config import Task
from schemas.strict import Strict


class MatrixFile(Strict):
    """The results of a matrix: the same bytes however often it was interrupted."""

    format: Literal[1] = 1
    models: list[ModelEntry]
    tasks: list[TaskEntry]
    cells: list[MatrixCell]  # task after task, of each the models in their order
    missing: list[tuple[str, str]] = Field(default_factory=list)  # cells that failed: task, model
    comparison: MatrixComparison | None = None  # None: no cell is there


class CellOrder(Strict):
    """What a cell's process measures, and what it is to find there."""

    model: MatrixModel
    task: Task
    backends: Backends
    model_entry: ModelEntry
    task_entry: TaskEntry


class CellCost(Strict):
    """``TASK.cost.json``: what a cell took; estimates are made from it, nothing else."""

    seconds: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)  # of memory, of the cell's process
