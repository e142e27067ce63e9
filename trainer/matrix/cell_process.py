"""One cell: measure one model on one task, in a process that does nothing else."""

import logging
import shutil
import time
from pathlib import Path

from schemas.errors import UserError
from schemas.matrix_cell import MatrixCell
from schemas.matrix_file import CellCost
from teacher_cache.process import peak_memory_bytes
from trainer.matrix.cell_files import CellPlace, read_order, write_cell
from trainer.matrix.digests_of_cell import model_entry, task_entry, versions
from trainer.matrix.task_kinds import KINDS

logger = logging.getLogger(__name__)


def run_cell(path: Path) -> None:
    """Measure what the order at ``path`` names, and write the cell beside it.

    Raises UserError, naming the cell; nothing is written then.
    """
    order = read_order(path)
    name = f"{order.task.name} × {order.model.name}"
    kind = KINDS[type(order.task)]
    place = CellPlace(path.parent, order.task_entry.digest)
    parts = place.file("parts")
    started = time.monotonic()
    try:
        result = kind.run(order.task, order.model, order.backends, *([parts] if kind.continues else []))
        _check_unchanged("models", model_entry(order.model).digest, order.model_entry.digest)
        _check_unchanged("tasks", task_entry(order.task, kind, order.backends).digest, order.task_entry.digest)
    except UserError as error:
        raise type(error)(f"{name}: {error}") from None
    cell = MatrixCell(
        model=order.model_entry,
        task=order.task_entry,
        measures=list(result.measures),
        versions=versions(kind.programs(order.task)),
    )
    items = None if result.items is None else sorted(result.items, key=lambda item: item.id)
    cost = CellCost(seconds=round(time.monotonic() - started, 1), peak_bytes=peak_memory_bytes())
    write_cell(place, cell, items, cost)
    shutil.rmtree(parts, ignore_errors=True)


def _check_unchanged(what: str, now: str, then: str) -> None:
    if now != then:
        raise UserError(f"{what}: its files were changed while it was measured; run the matrix again")
