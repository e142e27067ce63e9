"""Small files in the layouts in which benchmarks are published."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOUR = [("What is 1 + 1?", "1", "2", "3", "4", "B"), ('Is "a, b" one?', "no", "yes", "x", "y", "A")]


def write_small_benchmarks(folder: Path) -> Path:
    """Two rows of each benchmark, of those with subjects two subjects; returns the folder, with one folder of each."""
    _csv(folder / "mmlu/test/anatomy_test.csv", FOUR)
    _csv(folder / "mmlu/test/virology_test.csv", FOUR[:1])
    for subject in ("anatomy", "virology"):
        _csv(folder / f"mmlu/dev/{subject}_dev.csv", FOUR)
    titled = [("", "Question", "A", "B", "C", "D", "Answer"), *((n, *row) for n, row in enumerate(FOUR))]
    _csv(folder / "cmmlu/test/anatomy.csv", titled)
    _csv(folder / "cmmlu/dev/anatomy.csv", titled)
    titled = [("id", "question", "A", "B", "C", "D", "answer"), *((n, *row) for n, row in enumerate(FOUR))]
    _csv(folder / "ceval/val/accountant_val.csv", titled)
    _csv(folder / "ceval/dev/accountant_dev.csv", [(*row, "because") for row in titled])
    examples = [{"input": "Is it so?\nOptions:\n- Yes\n- No", "target": answer} for answer in ("Yes", "No")]
    _write(folder / "bbh/causal_judgement.json", json.dumps({"canary": "x", "examples": examples}))
    sums = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(3)]
    _lines(folder / "gsm8k/test.jsonl", sums[:2])
    _lines(folder / "gsm8k/train.jsonl", sums)
    ending = {"activity_label": "Cooking", "ctx_a": "A cook [step] takes a pan.", "ctx_b": "he", "ind": 1}
    endings = [{**ending, "endings": ["heats it.", "eats it.", "is it.", "was it."], "label": n} for n in (0, 1)]
    _lines(folder / "hellaswag/hellaswag_val.jsonl", endings)
    truths = [{"question": "Is the earth flat?", "mc1_targets": {"Yes.": 0, "No.": 1, "At times.": 0}}] * 2
    _write(folder / "truthfulqa/mc_task.json", json.dumps(truths))
    return folder


def small_benchmark_tasks(folder: Path) -> list[dict[str, Any]]:
    """The settings of one task of each benchmark in ``write_small_benchmarks``."""
    subjects = {
        "mmlu": ["anatomy", "virology"],
        "cmmlu": ["anatomy"],
        "ceval": ["accountant"],
        "bbh": ["causal_judgement"],
    }
    names = {**dict.fromkeys(subjects, ""), "gsm8k": "", "hellaswag": "", "truthfulqa-mc1": "truthfulqa"}
    return [
        {"kind": "benchmark", "name": name, "benchmark": name, "data": str(folder / (place or name)), "shots": shots}
        | ({"subjects": subjects[name]} if name in subjects else {})
        for name, place in names.items()
        for shots in (2 if name in ("mmlu", "cmmlu", "ceval", "gsm8k") else 0,)
    ]


def _csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _lines(path: Path, rows: Iterable[object]) -> None:
    _write(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
