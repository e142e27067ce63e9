"""Near duplicates: how many planted ones ``deduplicate`` finds, what it removes by mistake, time and memory at scale.

Quality: pieces of 1 KB of real text, and copies of some with words replaced, removed, or cut off; similarities are
exact Jaccard similarities of the sets of word 5-grams. Scale: ``teacher-cache curate`` over a million texts of 1 KB, a
twentieth of them copies with three words changed, by one process.
"""

import itertools
import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import FOLDER
from benchmarks.support.corpus import standard_library
from benchmarks.support.installed import run_installed
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from teacher_cache.curation.deduplicate import near_duplicates, sketches
from teacher_cache.curation.shingles import N, words_of

PIECE, COPIES, MIN_JACCARD = 1000, 6000, 0.72
DOCUMENTS, COPIED, WORDS = 1_000_000, 20, 140
BINS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0001)
UNLIKE = 0.65  # records that are less similar are no near duplicates
MINUTES, MAX_GIB = 15, 2


def main() -> int:
    """Run the benchmark; returns the exit status."""
    rows, raw = quality()
    more, scale_raw = scale(int(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS)
    title = "Near duplicates: 14 bands of 8 MinHashes of word 5-grams, verified at an estimated Jaccard of 0.72"
    write_results("near_duplicates", title, [*rows, *more], {**raw, **scale_raw})
    return exit_status([*rows, *more])


def quality() -> tuple[list[Row], dict[str, object]]:
    """What is found and what is removed by mistake."""
    rng = random.Random(0)
    pieces = real_pieces()
    rng.shuffle(pieces)
    originals = rng.sample(range(len(pieces)), min(COPIES, len(pieces)))
    texts = pieces + [edited(pieces[place], rng) for place in originals]
    grams = [shingle_set(text) for text in texts]
    code_N, leader_N = near_duplicates(sketches(texts, 0), MIN_JACCARD)
    left_N = code_N > 0
    planted = np.array([jaccard(grams[i], grams[place]) for i, place in enumerate(originals, len(pieces))])
    found = left_N[len(pieces) :]
    false = [
        jaccard(grams[at], grams[leader]) < UNLIKE
        for at, leader in zip(np.flatnonzero(left_N).tolist(), leader_N[left_N].tolist(), strict=True)
    ]
    bins = {
        f"{low:.2f} to {min(high, 1):.2f}": [int(found[inside].sum()), int(inside.sum())]
        for low, high in itertools.pairwise(BINS)
        if (inside := (planted >= low) & (planted < high)).any()
    }
    rows = [
        at_least(
            "planted near duplicates that leave, Jaccard ≥ 0.8", 100 * float(found[planted >= 0.8].mean()), "%", 95
        ),
        at_most(
            f"planted copies that leave though their Jaccard is below {UNLIKE}",
            100 * float(found[planted < UNLIKE].mean()),
            "%",
            1,
        ),
        at_most(
            f"of all that left, those with Jaccard below {UNLIKE} to the one for which they left",
            100 * float(np.mean(false)),
            "%",
            1,
        ),
        *(Row(f"planted at {name}: leave", 100 * left / all_, "%") for name, (left, all_) in bins.items()),
    ]
    return rows, {"pieces": len(pieces), "copies": len(originals), "left": int(left_N.sum()), "found_by_jaccard": bins}


def real_pieces() -> list[str]:
    """Pieces of the standard library's modules."""
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in standard_library()]
    return [text[at : at + PIECE] for text in texts for at in range(0, len(text) - PIECE + 1, PIECE)]


def edited(text: str, rng: random.Random) -> str:
    """A copy with up to a tenth of its words replaced or removed, or up to half of it cut off."""
    words = text.split()
    kind = rng.randrange(3)
    if kind == 2:
        return " ".join(words[: max(8, int(len(words) * rng.uniform(0.5, 1)))])
    rate = rng.uniform(0, 0.1)
    changed = [(f"word{rng.randrange(10**6)}" if kind else "") if rng.random() < rate else word for word in words]
    return " ".join(filter(None, changed))


def shingle_set(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams, by other means than the step's hashes."""
    words = words_of(text)
    return {tuple(words[at : at + N]) for at in range(max(1, len(words) - N + 1))}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Their Jaccard similarity."""
    return len(one & other) / len(one | other)


def scale(documents: int) -> tuple[list[Row], dict[str, object]]:
    """Seconds and memory of a whole curation."""
    folder = FOLDER / "near-duplicates"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_texts(folder / "texts.jsonl", documents)
    config = {
        "input": {"sources": [{"path": str(folder / "texts.jsonl")}]},
        "tokenizer": {"path": str(make_teacher())},
        "steps": [{"step": "deduplicate"}],
        "output": {"path": str(folder / "out")},
    }
    (folder / "curate.yaml").write_text(yaml.safe_dump(config))
    done = run_installed("teacher-cache", "curate", folder / "curate.yaml", "--json")
    removed = sum(sum(each.values()) for each in done.json["removed"].values())
    rows = [
        at_most(f"curate {documents:,} texts of 1 KB, one process", done.seconds / 60, "min", MINUTES),
        at_most("… peak memory", done.peak_memory_bytes / 2**30, "GiB", MAX_GIB),
        Row(f"… removed; planted are {documents // COPIED:,}", removed, "records"),
    ]
    shutil.rmtree(folder, ignore_errors=True)
    return rows, {"seconds": done.seconds, "peak_memory_bytes": done.peak_memory_bytes, "documents": documents}


def write_texts(path: Path, documents: int) -> None:
    """Texts of random words, some far more often than others; every twentieth is another with three words changed."""
    rng = np.random.default_rng(0)
    words = {word for path in standard_library() for word in re.findall(r"[a-z]+", path.read_text(errors="ignore"))}
    vocabulary = rng.permutation(sorted(words))
    with path.open("w", encoding="utf-8") as file:
        before = np.empty((0, WORDS), np.int64)
        for _ in range(0, documents, COPIED):
            word_NW = np.minimum(rng.zipf(1.2, (COPIED, WORDS)), len(vocabulary)) - 1
            if len(before):
                word_NW[-1] = before[rng.integers(len(before))]
                word_NW[-1, rng.integers(0, WORDS, 3)] = rng.integers(0, len(vocabulary), 3)
            before = word_NW[:-1]
            for chosen in vocabulary[word_NW]:
                file.write(json.dumps({"text": " ".join(chosen)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
