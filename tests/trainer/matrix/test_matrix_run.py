"""A matrix from beginning to end, through the command, its cells forked."""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.matrix_file import MatrixFile
from support.commands import Forked, kill_group, outputs
from support.forked_parts import fork_parts
from support.matrix_results import made_teachers
from support.small_matrix import matrix_config, matrix_tree, write_matrix, write_small_matrix
from trainer.matrix.cell_files import read_items
from trainer.matrix.item_means import mean_of
from trainer.matrix.matrix_plan import plan_matrix
from trainer.matrix.matrix_run import run_missing
from trainer.matrix.statistics.wording import claim_words
from trainer.run.part_process import PartFailed, PartProcesses

KILLS = 10
finished = partial(outputs, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_matrix(tmp_path_factory.mktemp("matrix"))


def start(config: Path, *options: str) -> Forked:
    return Forked("train-student", "matrix", config, "--json", *options, before=fork_parts)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A matrix of twelve cells that nothing interrupts."""
    output = folder / "whole"
    stdout, _ = finished(start(write_matrix(folder, output, n_tasks=4)))
    assert json.loads(stdout) == {"cells": 12, "done": 12, "results": str(output / "matrix.json")}
    return output


def marks(output: Path) -> dict[str, int]:
    """The cells that are there, and when each was written."""
    found = [path for path in output.glob("*/*.json") if path.name.count(".") == 1]
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in found}


def test_values_are_means_over_items_and_cells_are_in_order(whole: Path) -> None:
    matrix = MatrixFile.model_validate_json((whole / "matrix.json").read_text())
    assert [(cell.task.name, cell.model.name) for cell in matrix.cells] == [
        (f"documents {task}", model) for task in range(4) for model in ("teacher", "student 1", "student 2")
    ]
    assert [model.seed for model in matrix.models] == [None, 1, 2]
    assert not matrix.missing
    for cell in matrix.cells:
        items = read_items(whole, cell)
        assert cell.items is not None
        assert [item.id for item in items] == sorted({item.id for item in items})
        assert cell.measures[0].name == "kl"
        for measure in cell.measures:
            if measure.name in items[0].scores:
                assert measure.value == mean_of(items, measure.name)
    teacher, student = matrix.cells[:2]
    assert teacher.measures[0].value < student.measures[0].value
    assert [len(read_items(whole, cell)) for cell in matrix.cells[::3]] == [7, 1, 2, 3]


def test_a_matrix_that_is_killed_ten_times_ends_with_the_same_bytes(whole: Path, folder: Path) -> None:
    """SIGKILLs of the whole process group at any instant; no cell is computed twice."""
    output = folder / "killed"
    config, rng, seen = write_matrix(folder, output, n_tasks=4), random.Random(5), {}
    for kill in range(KILLS):
        process = start(config)
        deadline = time.monotonic() + 60
        while len(marks(output)) < min(kill + 1, 11):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        kill_group(process)
        now = marks(output)
        assert {name: now[name] for name in seen} == seen, "a cell was written again"
        seen = now
    assert len(seen) < 12, "all was done before the last kill"
    finished(start(config))
    assert {name: marks(output)[name] for name in seen} == seen
    for name in ("matrix.json", "matrix.md", "matrix.html"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_sigterm_ends_the_cell_and_the_same_command_continues(whole: Path, folder: Path) -> None:
    output = folder / "stopped"
    process = start(write_matrix(folder, output, n_tasks=4))
    while not marks(output):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = finished(process, 128 + signal.SIGTERM)
    done = json.loads(stdout)["done"]
    assert 1 <= done < 12
    assert f"stopped after {done} cells; the same command continues" in stderr
    assert not (output / "matrix.json").exists()
    stdout, _ = finished(start(write_matrix(folder, output, n_tasks=4), "--dry-run"))
    plan = json.loads(stdout)
    assert (plan["cells"], plan["done"], len(plan["missing"])) == (12, done, 12 - done)


def test_another_matrix_in_the_same_folder_measures_what_is_new_only(whole: Path, folder: Path) -> None:
    """Under other names, too; and what decides a result makes another cell."""
    output = folder / "shared"
    shutil.copytree(whole, output)
    before = marks(output)
    models = [{**model, "name": model["name"].upper()} for model in matrix_tree(folder, output)["models"]]
    finished(start(write_matrix(folder, output, models=models)))
    matrix = json.loads((output / "matrix.json").read_text())
    assert [cell["model"]["name"] for cell in matrix["cells"][:3]] == ["TEACHER", "STUDENT 1", "STUDENT 2"]
    assert marks(output) == before
    finished(start(write_matrix(folder, output, backends={"hf": {"batch_size": 3}}, models=models[:1])))
    assert len({*marks(output)} - {*before}) == 2


def test_the_verdict_on_a_claim_stands_first_and_the_teachers_on_the_page(whole: Path, folder: Path) -> None:
    output, figures = folder / "claimed", folder / "compare.json"
    shutil.copytree(whole, output)
    changes: dict[str, Any] = {
        "claim": {"says": "lighter teaches better", "better": "a", "than": "teacher", "task": "documents 0"},
        "teachers": str(figures),
    }
    _, stderr = finished(start(write_matrix(folder, output, **changes)), 2)
    assert f"{figures}: teachers: cannot read what `cache-tools compare A B --json` printed" in stderr
    figures.write_text(made_teachers(b="Light").model_dump_json())
    finished(start(write_matrix(folder, output, **changes)))
    found = MatrixFile.model_validate_json((output / "matrix.json").read_text()).comparison
    assert found is not None
    (pair,) = [pair for pair in found.pairs if pair.task == "documents 0"]
    assert found.notes[0] == claim_words("lighter teaches better", "a", pair)
    assert pair.words in found.notes[0]
    assert "B: <bdi>Light</bdi>" in (output / "matrix.html").read_text()
    assert marks(output) == marks(whole)


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ({"better": "a", "than": "student 1"}, "claim: 'a' and 'student 1' are not compared; add them to pairs"),
        ({"task": "fast"}, "claim: 'fast' is no task with items; choose from: documents 0, documents 1"),
    ],
)
def test_a_claim_is_of_a_pair_and_a_task_with_items(claim: dict[str, str], problem: str, tmp_path: Path) -> None:
    tree = matrix_tree(tmp_path, tmp_path / "out")
    tasks = [*tree["tasks"], {"kind": "latency", "name": "fast"}]
    whole = {"says": "better", "better": "a", "than": "teacher", "task": "documents 0", **claim}
    with pytest.raises(UserError, match=re.escape(problem)):
        matrix_config(tmp_path, tmp_path / "out", tasks=tasks, claim=whole)


def test_a_failing_cell_is_one_line_and_the_others_go_on(folder: Path) -> None:
    """A model with a smaller head than the cache's vocabulary."""
    output, broken = folder / "failing", folder / "broken"
    shutil.copytree(folder / "student-1", broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    tree = matrix_tree(folder, output)
    models = [{"name": "broken", "folder": str(broken)}, *tree["models"]]
    claim = {"says": "broken is best", "better": "broken", "than": "teacher", "task": "documents 0"}
    pairs = [["broken", "teacher"]]
    _, stderr = finished(start(write_matrix(folder, output, models=models, n_tasks=2, pairs=pairs, claim=claim)), 2)
    errors = [line for line in stderr.splitlines() if "rror" in line]
    assert len(errors) == 3, stderr
    assert errors[0].startswith("error: documents 0 × broken: ")
    assert errors[1].startswith("error: documents 1 × broken: ")
    assert errors[2].startswith("error: 2 of 8 cells failed (documents 0 × broken, documents 1 × broken); ")
    matrix = json.loads((output / "matrix.json").read_text())
    assert matrix["missing"] == [["documents 0", "broken"], ["documents 1", "broken"]]
    assert len(matrix["cells"]) == 6
    assert matrix["comparison"]["notes"][0] == (
        "“broken is best” was not tested: broken and teacher are not compared on documents 0."
    )


class Failing(PartProcesses):
    """Cells that end with these statuses, the first one without a word."""

    def __init__(self, statuses: list[int]) -> None:
        super().__init__()
        self.statuses = statuses

    def run(self, words: Sequence[str], what: str, output: bool = False) -> str | None:
        raise PartFailed(f"{what} is over", self.statuses.pop(0))


def test_a_cell_that_could_not_say_why_it_failed_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, or a bug: 8 and 70; with other statuses it has printed its own line."""
    plan = plan_matrix(matrix_config(folder, tmp_path / "out", n_tasks=1))
    failures = run_missing(plan, Failing([8, 2, 70]))
    names = [cell.name for cell in plan.cells]
    assert failures == dict(zip(names, (8, 2, 70), strict=True))
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"{names[0]} is over",
        f"{names[2]} is over",
    ]


def test_damaged_items_are_measured_again(whole: Path, folder: Path) -> None:
    output = folder / "damaged"
    shutil.copytree(whole, output)
    path = sorted(output.glob("*/*.items.jsonl"))[0]
    path.write_bytes(path.read_bytes().replace(b"kl", b"lk", 1))
    _, stderr = finished(start(write_matrix(folder, output, n_tasks=4)))
    assert f"{path}: sha256" in stderr
    assert "this cell is measured again" in stderr
    assert (output / "matrix.json").read_bytes() == (whole / "matrix.json").read_bytes()


def test_everything_is_checked_before_anything_runs(folder: Path) -> None:
    output = folder / "unchecked"
    tree = matrix_tree(folder, output)
    tasks: list[dict[str, Any]] = [
        *tree["tasks"],
        {"kind": "benchmark", "name": "m", "benchmark": "mmlu", "data": str(folder / "nothing")},
    ]
    models = [*tree["models"], {"name": "late", "folder": str(folder / "not-trained")}]
    _, stderr = finished(
        start(write_matrix(folder, output, models=models, tasks=tasks)),
        2,
    )
    lines = stderr.strip().splitlines()
    assert f"models: late: {folder}/not-trained: no such folder; train the student first" in lines[0]
    assert f"tasks: m: data: {folder}/nothing (no such file or folder): mmlu needs test/" in lines[1]
    assert "get it from hendrycks/test" in lines[1]
    assert lines[2] == "error: 2 problems, listed above; nothing was run"
    assert not output.exists()


def test_two_matrices_on_one_folder_are_refused(folder: Path) -> None:
    output = folder / "twice"
    first = start(write_matrix(folder, output, n_tasks=4))
    while not marks(output):
        assert first.poll() is None, first.communicate()
        time.sleep(0.002)
    _, stderr = finished(start(output.with_suffix(".yaml")), 7)
    assert f"{output}/.lease.json: in use by process " in stderr
    assert "(train-student matrix, since " in stderr
    finished(first)
