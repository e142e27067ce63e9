"""A cell's files: complete when its JSON is there, and refused if they are damaged or another cell's."""

from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.matrix_cell import MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_file import CellCost
from trainer.matrix.cell_files import cell_place, read_cell, read_cost, read_items, write_cell
from trainer.matrix.compared_measure import led_by

MODEL = ModelEntry(name="m", digest="a" * 64)
TASK = TaskEntry(name="t", digest="b" * 64, ability="x")
CELL = MatrixCell(model=MODEL, task=TASK, measures=[Measure(name="acc", value=0.5), Measure(name="other", value=2)])
ITEMS = [MatrixItem(id="1", scores={"acc": 0}), MatrixItem(id="2", scores={"acc": 1}, prompt="a\u2028b\nc")]
COST = CellCost(seconds=1, peak_bytes=2)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    place = cell_place(tmp_path, MODEL, TASK)
    place.folder.mkdir()
    write_cell(place, CELL, ITEMS, COST)
    return tmp_path


def test_what_is_written_is_read(output: Path) -> None:
    place = cell_place(output, MODEL, TASK)
    cell = read_cell(place)
    assert cell is not None
    assert cell.measures == CELL.measures
    assert read_items(output, cell) == ITEMS
    assert read_cost(place) == COST
    assert read_cell(cell_place(output, MODEL, TASK.model_copy(update={"digest": "c" * 64}))) is None
    write_cell(place, CELL, None, COST)
    again = read_cell(place)
    assert again is not None
    assert read_items(output, again) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "link", "another"])
def test_a_damaged_cell_is_not_done(damage: str, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = cell_place(output, MODEL, TASK)
    cell = read_cell(place)
    assert cell is not None
    items = place.file("items.jsonl")
    if damage == "cut":
        place.mark.write_bytes(place.mark.read_bytes()[:-20])
    elif damage == "changed":
        items.write_bytes(items.read_bytes().replace(b"1", b"0"))
    elif damage == "gone":
        items.unlink()
    elif damage == "link":
        items.rename(output / "elsewhere")
        items.symlink_to(output / "elsewhere")
    else:
        place.mark.write_text(
            CELL.model_copy(update={"model": MODEL.model_copy(update={"digest": "d" * 64})}).model_dump_json()
        )
    assert read_cell(place) is None
    assert "this cell is measured again" in caplog.text
    if damage in ("changed", "gone"):
        with pytest.raises(UserError, match=str(items)):
            read_items(output, cell)


def test_another_measure_leads(output: Path) -> None:
    assert led_by(CELL, None) == CELL
    assert [measure.name for measure in led_by(CELL, "other").measures] == ["other", "acc"]
    with pytest.raises(UserError, match="tasks: t: measure: there is no 'x', choose one of: acc, other"):
        led_by(CELL, "x")
