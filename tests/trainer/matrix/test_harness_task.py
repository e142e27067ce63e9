"""lm-eval's tasks: without a network, from local files only, scored item by item."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.errors import UserError
from schemas.load import validate
from schemas.matrix_cell import MatrixCell
from schemas.matrix_config import LmEvalTask, MatrixConfig
from support.import_graph import ROOT
from support.models import write_random_teacher
from support.small_benchmarks import small_benchmark_tasks, write_small_benchmarks
from trainer.matrix.cell_files import read_cell, read_items
from trainer.matrix.harness_files import local_data_files, task_files
from trainer.matrix.item_means import mean_of
from trainer.matrix.matrix_plan import plan_matrix

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
OWN = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{thing}} is"
doc_to_choice: [" red", " blue"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


def write_own_task(folder: Path) -> Path:
    """A task of a user; returns its folder."""
    folder.mkdir()
    data = folder / "colours.jsonl"
    things = [
        {"thing": thing, "answer": n % 2, "place": "up" if n else "down"} for n, thing in enumerate(("sea", "sky"))
    ]
    data.write_text("".join(f"{json.dumps(thing)}\n" for thing in things))
    (folder / "colours.yaml").write_text(OWN % data)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, MatrixCell]]:
    """All benchmarks and a task of the user's own by a random model, in a process without a network."""
    folder = tmp_path_factory.mktemp("harness")
    write_random_teacher(folder / "model", max_position_embeddings=2048)
    own = {"kind": "lm-eval", "name": "own", "ability": "colours", "task": "colours", "cluster": "place"}
    tree: dict[str, Any] = {
        "models": [{"name": "model", "folder": str(folder / "model")}],
        "tasks": [
            *small_benchmark_tasks(write_small_benchmarks(folder / "data")),
            {**own, "folder": str(write_own_task(folder / "own"))},
        ],
        "output": str(folder / "out"),
    }
    plan = plan_matrix(validate(MatrixConfig, tree, "test"))
    for cell in plan.cells:
        cell.place.folder.mkdir(parents=True, exist_ok=True)
        cell.place.order.write_text(cell.order.model_dump_json())
    line = [sys.executable, "-m", "support.offline_cells", *(str(cell.place.order) for cell in plan.cells)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {cell.order.task.name: read_cell(cell.place) for cell in plan.cells}
    return {name: (folder / "out", cell) for name, cell in found.items() if cell is not None}


def test_no_task_tries_the_network(measured) -> None:
    """``offline_cells`` fails if one does; all have results."""
    assert [*measured] == ["mmlu", "cmmlu", "ceval", "bbh", "gsm8k", "hellaswag", "truthfulqa-mc1", "own"]


def test_every_task_scores_its_items(measured) -> None:
    leading = {name: (cell.measures[0].name, cell.items.items) for name, (_, cell) in measured.items()}
    assert leading == {
        "mmlu": ("acc", 3),
        "cmmlu": ("acc", 2),
        "ceval": ("acc", 2),
        "bbh": ("exact_match (flexible-extract)", 2),
        "gsm8k": ("exact_match (flexible-extract)", 2),
        "hellaswag": ("acc_norm", 2),
        "truthfulqa-mc1": ("acc", 2),
        "own": ("acc", 2),
    }
    for output, cell in measured.values():
        items = read_items(output, cell)
        for measure in cell.measures:
            assert measure.value == mean_of(items, measure.name)
            assert (measure.unit, measure.higher_is_better) == ("", True)


def test_items_are_clustered_by_subject_or_by_a_field(measured) -> None:
    assert [item.cluster for item in read_items(*measured["mmlu"])] == ["anatomy", "anatomy", "virology"]
    assert [item.id for item in read_items(*measured["mmlu"])][::2] == ["mmlu_anatomy/000000", "mmlu_virology/000000"]
    assert [item.cluster for item in read_items(*measured["own"])] == ["down", "up"]
    assert {item.cluster for item in read_items(*measured["hellaswag"])} == {""}


def test_items_show_question_answer_and_what_was_wanted(measured) -> None:
    first, _ = read_items(*measured["hellaswag"])
    assert (first.prompt, first.wanted) == ("Cooking: A cook takes a pan. He", "heats it.")
    assert first.answer in {"heats it.", "eats it.", "is it.", "was it."}
    assert (first.answer == first.wanted) or first.scores["acc"] == 0
    assert read_items(*measured["mmlu"])[0].prompt.endswith("D. 4\nAnswer:")
    assert read_items(*measured["mmlu"])[0].prompt.count("Answer:") == 3, "two worked examples"
    assert [item.wanted for item in read_items(*measured["own"])] == ["red", "blue"]
    assert [item.wanted for item in read_items(*measured["bbh"])] == ["Yes", "No"]


def test_chance_is_that_of_the_choices(measured) -> None:
    chance = {name: cell.measures[0].chance for name, (_, cell) in measured.items()}
    assert (chance["mmlu"], chance["truthfulqa-mc1"], chance["own"], chance["gsm8k"]) == (0.25, 1 / 3, 0.5, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_path": "openai/gsm8k"}, "dataset_path: 'openai/gsm8k' would ask a hub; wanted one of json, "),
        ({"dataset_kwargs": {}}, "dataset_path: 'json' would ask a hub"),
        ({"dataset_kwargs": {"data_files": "https://x/y.json"}}, "data_files: https://x/y.json: no such local file"),
    ],
)
def test_a_task_file_that_asks_a_hub_is_refused(change, message: str, tmp_path: Path) -> None:
    folder = write_own_task(tmp_path / "own")
    (folder / "base_yaml").write_text((folder / "colours.yaml").read_text())
    (folder / "colours.yaml").write_text(yaml.safe_dump({"include": "base_yaml", "process_docs": "x", **change}))
    task = LmEvalTask(kind="lm-eval", name="x", ability="y", folder=str(folder), task="colours")
    with pytest.raises(UserError) as raised:
        local_data_files(task)
    assert str(raised.value).startswith(f"{folder}/colours.yaml: {message}")


def test_all_files_of_a_task_decide(tmp_path: Path) -> None:
    folder = write_own_task(tmp_path / "own")
    (folder / "functions.py").write_text("")
    task = LmEvalTask(kind="lm-eval", name="x", ability="y", folder=str(folder), task="colours")
    assert local_data_files(task) == [folder / "colours.jsonl"]
    assert [path.name for path in task_files(task)] == ["colours.yaml", "functions.py"]
    empty = LmEvalTask(kind="lm-eval", name="x", ability="y", folder=str(tmp_path / "none"), task="colours")
    with pytest.raises(UserError, match=r"folder: .*none: no such folder; wanted task files for lm-eval"):
        task_files(empty)
