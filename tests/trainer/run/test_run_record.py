import json
from pathlib import Path
from typing import Any

import pytest

from trainer.distiller import distill
from trainer.run.run_record import read_run_file


def test_a_resumed_run_keeps_its_id_and_one_that_starts_over_gets_another(make_config: Any) -> None:
    config = make_config(loop={"max_steps": 2, "report_to": []})
    path = Path(config.output) / "run.json"
    distill(config)
    first = json.loads(path.read_text())
    assert (first["starts"], first["planned_steps"], first["rows_per_step"], first["ranks"]) == (1, 2, 4, 1)
    assert first["config"]["loop"]["max_steps"] == 2
    assert first["parameters"] > 1000
    distill(make_config(loop={"max_steps": 4, "report_to": []}))
    second = json.loads(path.read_text())
    assert (second["id"], second["started"], second["starts"]) == (first["id"], first["started"], 2)
    assert (second["planned_steps"], second["config"]["loop"]["max_steps"]) == (4, 4)
    distill(make_config(loop={"max_steps": 2, "report_to": [], "resume": False}))
    third = json.loads(path.read_text())
    assert third["id"] != first["id"]
    assert third["starts"] == 1


def test_a_damaged_file_is_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_text('{"id": "../x"}')
    assert read_run_file(tmp_path / "run.json") is None
    assert "run.json" in caplog.text
    assert "loggers will start another run" in caplog.text
