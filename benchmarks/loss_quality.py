"""Contribution of each loss of the recipe: the demo's student on hard labels, on TLA, and on TLA with LHSM, APC, ASR.

Every arm starts from the same weights (22 of the teacher's 30 layers), sees the same batches and takes the same number
of steps, for several seeds, which set the order of the data. TLA learns from 64 entries at T = 1, with a constant
weight; the other terms use the recipe's weights and schedules. Only layers that the student still has are matched: its
layer 17 was the teacher's layer 25.

An arm's spread is its largest minus its smallest value over seeds. A term's contribution is the difference from TLA
alone, paired by seed, because the order of the data shifts all arms together.

Evaluations are kept in runs/loss-quality, so that an interrupted run resumes.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.installed import run_installed
from benchmarks.support.results import Row, exit_status, write_results
from benchmarks.support.students import (
    CACHE_CONFIG,
    HARD_LABELS,
    TOP_64,
    TRAIN_CONFIG,
    cache_settings,
    evaluate,
    options,
    write_corpora,
)

FOLDER = Path("runs/loss-quality")
SIGNALS = ("capture.hidden={layers: [8, 13, 25]}", "capture.attention={}")
LHSM = "losses.lhsm={pairs: [{teacher: 8, student: 8}, {teacher: 13, student: 13}, {teacher: 25, student: 17}]}"
APC, ASR = "losses.apc={}", "losses.asr={}"
ARMS: dict[str, tuple[str, ...]] = {
    "hard labels": HARD_LABELS,
    "TLA": (),
    "TLA + LHSM": (LHSM,),
    "TLA + APC": (APC,),
    "TLA + ASR": (ASR,),
    "all four": (LHSM, APC, ASR),
}
MEASURES = (("KL(teacher ‖ student)", "nat", "kl", 1), ("top-1 agreement", "%", "top1_agreement", 100))


def main() -> int:
    """Train and evaluate every arm; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_quality", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="orders of the data (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of each student (default: 20)")
    arguments = parser.parse_args()
    teacher = make_teacher()
    held_out, student = make_caches(teacher), make_student(teacher)
    before = evaluate(student, held_out)
    measured: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        for arm in ARMS:
            measured[arm].append(trained(arm, seed, arguments.steps, student, held_out))
    rows = table(before, measured)
    raw = {"before": before, "seeds": arguments.seeds, "steps": arguments.steps, "arms": measured, "settings": ARMS}
    write_results(
        "loss_quality", f"What each loss adds: {len(arguments.seeds)} seeds, held-out code and chats", rows, raw
    )
    return exit_status(rows)


def make_caches(teacher: Path) -> Path:
    """Write the cache with every signal and the held-out one, unless they exist; returns the held-out one's path."""
    write_corpora(FOLDER)
    for folder, signals in ((FOLDER, SIGNALS), (FOLDER / "held-out", ())):
        changes = [f"teacher.path={teacher}", *cache_settings(folder), *TOP_64, *signals]
        run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
    return FOLDER / "held-out/cache"


def make_student(teacher: Path) -> Path:
    """Write the initial weights of all arms; returns their folder."""
    changes = [f"student.teacher={teacher}", f"output={FOLDER / 'student'}"]
    run_installed("train-student", "init", TRAIN_CONFIG, *options(changes))
    return FOLDER / "student/student-init"


def trained(arm: str, seed: int, steps: int, student: Path, held_out: Path) -> dict[str, Any]:
    """Train one student and evaluate it on the held-out cache, unless its evaluation exists."""
    output = FOLDER / f"{arm.replace(' ', '-')}-seed-{seed}-steps-{steps}"
    done = output / "evaluation.json"
    if not done.exists():
        changes = [
            f"data.cache={FOLDER / 'cache'}",
            f"student={{checkpoint: {student}}}",
            f"output={output}",
            f"loop.seed={seed}",
            f"loop.max_steps={steps}",
            *ARMS[arm],
        ]
        run_installed("train-student", "run", TRAIN_CONFIG, *options(changes), "--json")
        done.write_text(json.dumps(evaluate(output / "final", held_out), indent=1))
        shutil.rmtree(output / "final")
    return json.loads(done.read_text())


def table(before: dict[str, Any], measured: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Mean and spread of every arm, and the mean, smallest and largest difference from TLA alone."""
    rows = []
    for name, unit, key, factor in MEASURES:
        rows.append(Row(f"{name}: before training", factor * before[key], unit))
        baseline = [factor * run[key] for run in measured["TLA"]]
        for arm, runs in measured.items():
            values = [factor * run[key] for run in runs]
            spread = f"spread {max(values) - min(values):.3f}"
            if arm not in ("hard labels", "TLA"):
                added = [value - base for value, base in zip(values, baseline, strict=True)]
                spread += f"; against TLA {statistics.mean(added):+.3f} ({min(added):+.3f} … {max(added):+.3f})"
            rows.append(Row(f"… {arm} ({spread})", statistics.mean(values), unit))
    return rows


if __name__ == "__main__":
    sys.exit(main())
