"""Students with another tokenizer, trained from one cache: how much of the same tokenizer's gain survives.

The teacher is SmolLM2-135M; its cache holds the top 64 of each row over Python and English. The student is cut from
it, to 4 of 30 layers: once with the teacher's own tokenizer, and once with Qwen3.6's, cut to the tokens that the texts
need (``support/transplant``). Every arm starts from the same weights of its tokenizer, and takes the same steps over
the same texts, in the same order, with the same optimiser; a seed sets the order.

The measure is bits per byte on held-out files, which no tokenizer changes. The gain of distillation is what a student
saves over hard labels; share kept = gain with the other tokenizer ÷ gain with the teacher's own, both of the mean of
the two kinds of text. As a cut vocabulary is a head start of its own, the same is measured with the teacher's tokenizer
cut in the same way, and its rows turned like those for any other tokenizer.

ULD and GOLD's loss, as published (``support/published_losses``), learn from whole distributions, rebuilt from the
cache's final hidden states.

Results are kept in runs/cross-tokenizer, so that an interrupted run resumes.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_picture
from benchmarks.support.results import Row, at_least, exit_status, write_results
from benchmarks.support.students import CACHE_CONFIG, HARD_LABELS, TOP_64, TRAIN_CONFIG, options
from benchmarks.support.tokenizers import install
from benchmarks.support.two_kinds import KINDS, held_out_texts, texts_of, write_kinds

FOLDER = Path("runs/cross-tokenizer")
PICTURE = Path("docs/pictures/cross-tokenizer.png")
CHARACTERS = {"Python": 1500, "English": 3000}  # of a passage to train on
EVERY = 8  # one in so many of the files to train on: a small corpus, read several times
HELD_OUT_CHARACTERS = {"Python": 800, "English": 8000}
PIECE_CHARACTERS = 1000  # of held-out text that a model reads at a time
LAYERS = (0, 1, 2, 29)
MICRO_BATCH, STEPS, WARM_UP, LEARNING_RATE = 4, 48, 4, 1e-3
OWN, OTHER, CUT = "own tokenizer", "Qwen3.6 tokenizer", "own tokenizer, cut"
MIN_SHARE = 60


@dataclass(frozen=True)
class Arm:
    """How a student is trained: by ``train-student`` with these settings, or by a plain loop with a published loss."""

    tokenizer: str
    settings: tuple[str, ...] = ()
    published: str | None = None


def aligned(align: str) -> tuple[str, ...]:
    """The settings of rows turned for another tokenizer."""
    return (f"data.align={align}",)


UNTAUGHT = ("losses.cross_entropy={weight: {start: 1, end: 1}, rows: untaught}",)
ARMS = {
    "own, hard labels": Arm(OWN, HARD_LABELS),
    "own, distilled": Arm(OWN),
    "hard labels": Arm(OTHER, (*aligned("all"), *HARD_LABELS)),
    "strict": Arm(OTHER, (*aligned("strict"), *UNTAUGHT)),
    "border": Arm(OTHER, (*aligned("border"), *UNTAUGHT)),
    "all": Arm(OTHER, (*aligned("all"), *UNTAUGHT)),
    "all + alm": Arm(OTHER, (*aligned("all"), *UNTAUGHT, "losses.alm={}")),
    "classes": Arm(OTHER, (*aligned("classes"), *UNTAUGHT)),
    "ULD": Arm(OTHER, published="uld"),
    "GOLD": Arm(OTHER, published="gold"),
    "own cut, hard labels": Arm(CUT, (*aligned("all"), *HARD_LABELS)),
    "own cut, distilled": Arm(CUT, (*aligned("all"), *UNTAUGHT)),
}
OURS = ("strict", "border", "all", "all + alm", "classes")
Measured = dict[str, list[dict[str, Any]]]


def main() -> int:
    """Train and evaluate every student that has not been; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cross_tokenizer", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="orders of the data (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of each student (default: {STEPS})")
    parser.add_argument("--at-most", type=int, help="train so many students at most; end without a table if some lack")
    arguments = parser.parse_args()
    problem = install()
    if problem is not None:
        print(f"error: the tokenizers cannot be installed: {problem}", file=sys.stderr)
        return 1
    teacher = make_teacher()
    sizes = write_kinds(FOLDER, CHARACTERS, HELD_OUT_CHARACTERS, EVERY)
    make_cache(teacher)
    students = make_students(teacher)
    before = {name: untrained(name, folder) for name, folder in {"teacher": teacher, **students}.items()}
    wanted = [(arm, seed) for seed in arguments.seeds for arm in ARMS]
    wanted.sort(key=lambda run: ARMS[run[0]].tokenizer == CUT)  # last, as no bar is about them
    missing = [run for run in wanted if not result_file(*run, arguments.steps).exists()]
    for arm, seed in missing[: arguments.at_most]:
        train(arm, seed, arguments.steps, students[ARMS[arm].tokenizer])
    if arguments.at_most is not None and len(missing) > arguments.at_most:
        print(f"{len(missing) - arguments.at_most} of {len(wanted)} students are not trained yet")
        return 0
    measured: Measured = {
        arm: [json.loads(result_file(arm, seed, arguments.steps).read_text()) for seed in arguments.seeds]
        for arm in ARMS
    }
    rows = table(before, measured)
    raw = {
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "samples_per_step": MICRO_BATCH,
        "learning_rate": LEARNING_RATE,
        "layers": LAYERS,
        "training_bytes": sizes,
        "before": before,
        "arms": measured,
    }
    title = f"A student with another tokenizer: {len(arguments.seeds)} seeds, held-out Python and English"
    write_results("cross_tokenizer", title, rows, raw)
    plot(measured, PICTURE)
    return exit_status(rows)


def make_cache(teacher: Path) -> None:
    """Run ``teacher-cache`` unless its summary exists."""
    summary = FOLDER / "cache.json"
    if summary.exists():
        return
    sources = [f"{{path: {FOLDER / 'corpus' / kind}, format: text, pattern: '*.*', layer: {kind}}}" for kind in KINDS]
    changes = [
        f"teacher.path={teacher}",
        f"corpus.sources=[{', '.join(sources)}]",
        f"output.path={FOLDER / 'cache'}",
        *TOP_64,
        "capture.logits.temperatures=[1.0]",
        "capture.final={dtype: bfloat16}",
        "provenance.notes=Made by benchmarks.cross_tokenizer.",
    ]
    finished = run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
    summary.write_text(json.dumps(finished.json, indent=1))


def make_students(teacher: Path) -> dict[str, Path]:
    """Write the first weights of both students, unless they exist; returns their folders by tokenizer."""
    changes = [
        f"data.cache={FOLDER / 'cache'}",
        f"student.teacher={teacher}",
        f"student.from_layers={list(LAYERS)}",
        f"output={FOLDER / 'own'}",
    ]
    own, other = FOLDER / "own/student-init", FOLDER / "other/student-init"
    if not own.exists():
        run_installed("train-student", "init", TRAIN_CONFIG, *options(changes))
    cut = FOLDER / "cut/student-init"
    for folder, tokenizer in ((other, "qwen"), (cut, "smollm2")):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            in_own_process(write_student, own, folder, tokenizer)
    return {OWN: own, OTHER: other, CUT: cut}


def write_student(own: Path, other: Path, name: str) -> None:
    """Write the student in ``own`` with another tokenizer, cut to what training and held-out texts need."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.support import tokenizers
    from benchmarks.support.transplant import cut_tokenizer, transplant

    tokenizer = cut_tokenizer(getattr(tokenizers, name)(), texts_of(FOLDER))
    model = AutoModelForCausalLM.from_pretrained(own, dtype=torch.float32)
    transplant(model, AutoTokenizer.from_pretrained(own), tokenizer)
    unfinished = other.with_name(f"{other.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(other)


def untrained(name: str, folder: Path) -> dict[str, float]:
    """Bits per byte of a model that no run trains, by kind of text."""
    file = FOLDER / "results" / f"before-{file_name(name)}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(bits_of(folder), indent=1))
    found: dict[str, float] = json.loads(file.read_text())
    return found


def bits_of(folder: Path) -> dict[str, float]:
    """Bits per byte of the model in a folder on the held-out texts, by kind."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.support.bits import bits_per_byte, pieces

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    return {
        kind: bits_per_byte(model, tokenizer, pieces(held_out_texts(FOLDER, kind), PIECE_CHARACTERS)) for kind in KINDS
    }


def result_file(arm: str, seed: int, steps: int) -> Path:
    """Where the result of a run is kept."""
    return FOLDER / "results" / f"{file_name(arm)}-seed-{seed}-steps-{steps}.json"


def file_name(name: str) -> str:
    """A name without blanks and commas."""
    return name.replace(" ", "-").replace(",", "")


def train(name: str, seed: int, steps: int, student: Path) -> None:
    """Train a student, evaluate it, and write the result."""
    arm, done = ARMS[name], result_file(name, seed, steps)
    output = FOLDER / "students" / done.stem
    shutil.rmtree(output, ignore_errors=True)
    changes = [
        f"data.cache={FOLDER / 'cache'}",
        f"student={{checkpoint: {student}}}",
        "losses.tla.target=top_k",
        f"optimizer={{lr: {LEARNING_RATE}, warmup_steps: {WARM_UP}}}",
        f"loop={{max_steps: {steps}, micro_batch_size: {MICRO_BATCH}, bf16: true, seed: {seed}, save_every: 10000}}",
        f"output={output}",
        *arm.settings,
    ]
    start = time.perf_counter()
    if arm.published is None:
        run_installed("train-student", "run", TRAIN_CONFIG, *options(changes), "--json")
    else:
        in_own_process(train_published, arm.published, changes)
    seconds = time.perf_counter() - start
    bits = bits_of(output / "final")
    done.write_text(json.dumps({"bits": bits, "seconds": round(seconds, 1)}, indent=1))
    shutil.rmtree(output)
    print(f"   {done.stem}: {bits}, {seconds:.0f} s", flush=True)


def train_published(loss: str, changes: list[str]) -> None:
    """Train with ULD or GOLD's loss, with the settings that ``train-student`` would have."""
    from benchmarks.support.plain_training import train as train_plainly
    from schemas.load import load_config
    from schemas.train_config import TrainConfig

    train_plainly(load_config(TrainConfig, str(TRAIN_CONFIG), tuple(changes)), loss, make_teacher())


def mean_bits(run: dict[str, Any]) -> float:
    """The mean of the kinds of text."""
    return statistics.mean(run["bits"][kind] for kind in KINDS)


def shares(measured: Measured, arm: str, of: str = "own") -> tuple[float, list[float]]:
    """Share of the own tokenizer's gain that an arm keeps, percent: of the means over seeds, and seed by seed.

    of: ``own``, or ``own cut``.
    """
    names = (f"{of}, hard labels", f"{of}, distilled", "hard labels", arm)
    own_hard, own_best, hard, this = ([mean_bits(run) for run in measured[name]] for name in names)
    gains = [(h - t, oh - ob) for oh, ob, h, t in zip(own_hard, own_best, hard, this, strict=True)]
    total = 100 * sum(gain for gain, _ in gains) / sum(own for _, own in gains)
    return total, [100 * gain / own for gain, own in gains]


def table(before: dict[str, dict[str, float]], measured: Measured) -> list[Row]:
    """Bits per byte of every arm, and the share of the gain that it keeps."""
    rows = []
    for name, bits in before.items():
        what = "the teacher" if name == "teacher" else f"before training, {name}"
        rows.append(Row(f"{what}: {_by_kind([bits])}", statistics.mean(bits.values()), "bits/byte"))
    for arm, runs in measured.items():
        values = [mean_bits(run) for run in runs]
        what = f"{arm}: {_by_kind([run['bits'] for run in runs])}, spread {max(values) - min(values):.4f}"
        rows.append(Row(what, round(statistics.mean(values), 4), "bits/byte"))
    for arm in turned():
        share, by_seed = shares(measured, arm)
        of_cut = shares(measured, arm, "own cut")[0]
        what = (
            f"share kept, {arm} ({min(by_seed):.0f} … {max(by_seed):.0f}; of the gain with the own cut: {of_cut:.0f})"
        )
        rows.append(Row(what, share, "%"))
    kept = {arm: shares(measured, arm)[0] for arm in (*OURS, "ULD", "GOLD")}
    best = max(OURS, key=lambda arm: kept[arm])
    rows.append(at_least(f"best arm: {best}", kept[best], "%", MIN_SHARE))
    rows.append(_compared("`all`", kept["all"], "≥ strict", kept["all"] >= kept["strict"]))
    rows += [_compared(best, kept[best], f"> {arm}", kept[best] > kept[arm]) for arm in ("ULD", "GOLD")]
    return rows


def turned() -> list[str]:
    """The arms with another tokenizer that learn from the teacher."""
    return [name for name, arm in ARMS.items() if arm.tokenizer == OTHER and name != "hard labels"]


def _compared(what: str, share: float, bar: str, holds: bool) -> Row:
    return Row(f"share kept, {what}", share, "%", bar, holds)


def _by_kind(bits: list[dict[str, float]]) -> str:
    """The means of several runs, kind by kind."""
    return ", ".join(f"{kind} {statistics.mean(each[kind] for each in bits):.3f}" for kind in KINDS)


def plot(measured: Measured, path: Path) -> None:
    """Plot the share kept by every arm, each seed a dot, and the bits per byte of each kind of text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for at, arm in enumerate(turned()):
        share, by_seed = shares(measured, arm)
        panels[0].barh(at, share, color="tab:blue" if arm in OURS else "tab:gray", height=0.6)
        panels[0].plot(by_seed, [at] * len(by_seed), "k.", markersize=4)
    panels[0].set_yticks(range(len(turned())), turned())
    panels[0].axvline(0, color="gray", linewidth=0.8)
    panels[0].axvline(100, color="gray", linewidth=0.8, linestyle="--")
    panels[0].set_title("share of the own tokenizer's gain, %", fontsize=10)
    for panel, kind in zip(panels[1:], KINDS, strict=True):
        for at, (arm, runs) in enumerate(measured.items()):
            values = [run["bits"][kind] for run in runs]
            color = "tab:orange" if ARMS[arm].tokenizer != OTHER else "tab:blue" if arm in OURS else "tab:gray"
            panel.plot(values, [at] * len(values), ".", color=color, markersize=7)
        panel.set_yticks(range(len(measured)), list(measured))
        panel.set_title(f"{kind}, bits per byte", fontsize=10)
    for panel in panels:
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    save_picture(figure, path)


if __name__ == "__main__":
    sys.exit(main())
