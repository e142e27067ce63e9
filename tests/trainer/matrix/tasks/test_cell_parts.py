"""What a cell wrote is there after a failure, and gone once the cell is complete."""

import json
from pathlib import Path

import pytest

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_file import CellOrder
from schemas.matrix_tasks import LongContextTask
from support.models import write_random_teacher
from trainer.matrix import cell_process
from trainer.matrix.cell_files import cell_place, read_cell
from trainer.matrix.cell_process import run_cell
from trainer.matrix.digests_of_cell import model_entry, task_entry
from trainer.matrix.task_kinds import KINDS
from trainer.matrix.tasks import hf_writer


def test_a_cell_continues_from_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"id": i, "prompt": f"def f{i}", "wanted": "x"}) + "\n" for i in "ab"))
    model = MatrixModel(name="m", folder=str(write_random_teacher(tmp_path / "model")))
    task = LongContextTask(kind="long-context", name="t", data=str(data), max_new_tokens=3)
    entries = model_entry(model), task_entry(task, KINDS[LongContextTask], Backends())
    place = cell_place(tmp_path / "matrix", *entries)
    place.folder.mkdir(parents=True)
    order = CellOrder(model=model, task=task, backends=Backends(), model_entry=entries[0], task_entry=entries[1])
    place.order.write_text(order.model_dump_json())

    def is_killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cell_process, "write_cell", is_killed)
        with pytest.raises(KeyboardInterrupt):
            run_cell(place.order)
    assert len(list(place.file("parts").iterdir())) == 2
    monkeypatch.setattr(hf_writer, "HfWriter", None)  # nothing is written again
    run_cell(place.order)
    cell = read_cell(place)
    assert cell is not None
    assert cell.items is not None
    assert (cell.measures[0].name, cell.items.items) == ("ROUGE-L", 2)
    assert not place.file("parts").exists()
