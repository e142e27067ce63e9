"""Files of a cell: ``MODEL/TASK.json`` by digests, its items beside it; the cell is there when the first is."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.manifest import FileEntry
from schemas.matrix_cell import ItemsFile, MatrixCell, MatrixItem, ModelEntry, TaskEntry
from schemas.matrix_file import CellCost, CellOrder
from schemas.regular_files import read_file
from trainer.run.output_files import difference, replace_text

MAX_BYTES = 16 << 20  # of a cell's JSON
MAX_ITEMS_BYTES = 4 << 30
logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class CellPlace:
    """Where a cell's files are."""

    folder: Path  # of the model
    digest: str  # of the task

    def file(self, ending: str) -> Path:
        """A file of the cell."""
        return self.folder / f"{self.digest}.{ending}"

    @property
    def mark(self) -> Path:
        """The file that makes the cell complete."""
        return self.file("json")

    @property
    def order(self) -> Path:
        """What its process is told."""
        return self.file("order.json")


def cell_place(output: Path, model: ModelEntry, task: TaskEntry) -> CellPlace:
    """The place of a cell in a matrix' folder."""
    return CellPlace(output / model.digest, task.digest)


def write_cell(place: CellPlace, cell: MatrixCell, items: list[MatrixItem] | None, cost: CellCost) -> None:
    """Write a cell: its items, its cost, and at last the mark that it is complete."""
    if items is not None:
        text = "".join(f"{item.model_dump_json()}\n" for item in items)
        entry = ItemsFile(
            name=place.file("items.jsonl").name, sha256=hashlib.sha256(text.encode()).hexdigest(), items=len(items)
        )
        replace_text(place.folder / entry.name, text)
        cell = cell.model_copy(update={"items": entry})
    replace_text(place.file("cost.json"), cost.model_dump_json())
    replace_text(place.mark, cell.model_dump_json(indent=1) + "\n")


def read_cell(place: CellPlace) -> MatrixCell | None:
    """A complete cell; None, with a warning, if a file of it is damaged, or without one if it is not there."""
    if not place.mark.exists():
        return None
    try:
        cell = _read(MatrixCell, place.mark)
        if (cell.model.digest, cell.task.digest) != (place.folder.name, place.digest):
            raise UserError(f"{place.mark}: is the cell {cell.model.digest[:12]}…/{cell.task.digest[:12]}…")
        if cell.items is not None:
            _check_items(place, cell.items)
    except UserError as error:
        logger.warning("%s; this cell is measured again", error)
        return None
    return cell


def _check_items(place: CellPlace, entry: ItemsFile) -> None:
    path = place.file("items.jsonl")
    if entry.name != path.name:
        raise UserError(f"{place.mark}: names its items {entry.name!r}, wanted {path.name}")
    size = path.stat().st_size if path.is_file() else 0
    found = difference(path, FileEntry(bytes=size, sha256=entry.sha256))
    if found is not None:
        raise UserError(f"{path}: {found}")


def read_items(output: Path, cell: MatrixCell) -> list[MatrixItem]:
    """The items of a cell, in the order of their ids; [] if it has none. Raises UserError."""
    if cell.items is None:
        return []
    place = cell_place(output, cell.model, cell.task)
    path = place.file("items.jsonl")
    data = read_file(path, MAX_ITEMS_BYTES)
    if hashlib.sha256(data).hexdigest() != cell.items.sha256:
        raise UserError(f"{path}: is not what {place.mark} says; run the matrix again")
    return [parse_json(MatrixItem, line, str(path)) for line in data.splitlines()]


def read_order(path: Path) -> CellOrder:
    """What a cell's process is to do. Raises UserError."""
    return _read(CellOrder, path)


def read_cost(place: CellPlace) -> CellCost | None:
    """What a cell took; None if that is not known."""
    try:
        return _read(CellCost, place.file("cost.json"))
    except UserError:
        return None


def _read(model: type[Model], path: Path) -> Model:
    return parse_json(model, read_file(path, MAX_BYTES), str(path))
