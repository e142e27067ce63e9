"""Quality of students trained on each cached form of the target, relative to a ceiling and a floor.

The ceiling is online distillation, with the teacher resident and its full logits at every step; the floor is hard
labels. All students start from the same weights (22 of SmolLM2-135M's 30 layers), see the same batches in the same
order and take the same number of steps; a seed sets the order of the data. The measure is the KL of full distributions
on held-out files at T = 1: share kept = (floor - form) / (floor - ceiling), with the ceiling of the same temperature,
paired by seed. Where that ceiling is no better than the floor, the untrained student replaces the floor.

Bytes are those of files: tokens and text, the target, and the index; draws are counted at the one temperature that is
trained on. The teacher's output head, stored once per cache, is not included. A whole run takes hours; results are kept
in runs/target-quality, so that an interrupted run resumes.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process
from benchmarks.support.installed import run_installed
from benchmarks.support.results import Row, at_least, exit_status, write_results
from benchmarks.support.students import CACHE_CONFIG, TOP_64, TRAIN_CONFIG, cache_settings, options, write_corpora

FOLDER = Path("runs/target-quality")
PICTURE = Path("docs/pictures/target-quality.png")
SIZES = (40, 60, 100, 200, 400)  # bytes per token that the picture's axis names
MODULES, CHATS, HELD_OUT_MODULES, HELD_OUT_CHATS = 48, 16, 12, 6
MICRO_BATCH, LEARNING_RATE, WARM_UP = 4, 3e-4, 3
TEMPERATURES = (1.0, 3.0)
NO_DRAWS = "capture.draws=null"
DRAWN_AT = "temperatures: [1.0, 3.0]"
DENSE = "dense, int8"
CACHES = {
    "top_k 8": ("capture.logits.k=8", NO_DRAWS),
    "top_k 16": ("capture.logits.k=16", NO_DRAWS),
    "top_k 64": TOP_64,
    "nucleus 0.95": ("capture.logits.policy=nucleus", "capture.logits.mass=0.95", *TOP_64),
    "sampled, 12 draws": ("capture.logits.k=1", f"capture.draws={{n: 12, region: all, {DRAWN_AT}}}"),
    "sampled, 50 draws": ("capture.logits.k=1", f"capture.draws={{n: 50, region: all, {DRAWN_AT}}}"),
    "head_and_tail 16 + 16": ("capture.logits.k=16", f"capture.draws={{n: 16, {DRAWN_AT}}}"),
    "head_and_tail 64 + 50": ("capture.logits.k=64", f"capture.draws={{n: 50, {DRAWN_AT}}}"),
    DENSE: ("capture.logits.k=1", "capture.final={}", NO_DRAWS),
}
HARD = {"tla": {"weight": {"start": 0, "end": 0}}, "cross_entropy": {"weight": {"start": 1, "end": 1}}}
FLOOR, CEILING = "hard labels", "online, full logits"
UNTRAINED = "before training"
RENORMALISED = "top_k 64, renormalised"


def arms() -> list[tuple[str, float]]:
    """All students, each with the form and the temperature it trains on."""
    forms = [CEILING, *CACHES, RENORMALISED]
    return [(FLOOR, 1.0), *((form, temperature) for temperature in TEMPERATURES for form in forms)]


def main() -> int:
    """Write the caches, train and evaluate every student; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.target_quality", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="orders of the data (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each student (default: 12)")
    arguments = parser.parse_args()
    teacher = make_teacher()
    costs = make_caches(teacher)
    run_installed("train-student", "init", TRAIN_CONFIG, *options([f"student.teacher={teacher}", f"output={FOLDER}"]))
    measured = {UNTRAINED: [student_of(UNTRAINED, 1.0, seed=0, steps=0)] * len(arguments.seeds)}
    for seed in arguments.seeds:
        for form, temperature in arms():
            result = student_of(form, temperature, seed, arguments.steps)
            measured.setdefault(key(form, temperature), []).append(result)
    rows = table(measured, costs)
    raw = {"seeds": arguments.seeds, "steps": arguments.steps, "students": measured, "costs": costs}
    write_results("target_quality", f"Which target to cache: {len(arguments.seeds)} seeds, held-out code", rows, raw)
    plot(measured, costs, PICTURE)
    return exit_status(rows)


def key(form: str, temperature: float) -> str:
    """The name of an arm."""
    return form if form in (FLOOR, UNTRAINED) else f"{form}, T = {temperature:g}"


def make_caches(teacher: Path) -> dict[str, dict[str, Any]]:
    """Write the cache of every form and the held-out one, unless they exist; returns the cost of each form."""
    write_corpora(FOLDER, MODULES, CHATS, HELD_OUT_MODULES, HELD_OUT_CHATS)
    held_out = [*cache_settings(FOLDER / "held-out"), *TOP_64, "capture.final={dtype: bfloat16}"]
    write_cache(teacher, FOLDER / "held-out", held_out)
    costs = {}
    for name, changes in CACHES.items():
        folder = cache_folder(name)
        places = [f"output.path={folder / 'cache'}", *cache_settings(FOLDER)[1:]]
        summary = write_cache(teacher, folder, [*places, *changes])
        costs[name] = {"capture_tokens_per_second": summary["tokens_per_second"], "bytes": bytes_per_token(folder)}
    return costs


def cache_folder(name: str) -> Path:
    """The folder of a form's cache."""
    return FOLDER / "caches" / name.replace(" ", "-")


def write_cache(teacher: Path, folder: Path, changes: list[str]) -> dict[str, Any]:
    """Run ``teacher-cache`` unless its summary exists; returns the summary."""
    summary = folder / "summary.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        finished = run_installed(
            "teacher-cache", "run", CACHE_CONFIG, *options([f"teacher.path={teacher}", *changes]), "--json"
        )
        summary.write_text(json.dumps(finished.json, indent=1))
    return json.loads(summary.read_text())


def bytes_per_token(folder: Path) -> dict[str, float]:
    """Bytes a token that a form needs for each temperature alone: the draws' bytes are split by encoding each apart."""
    from schemas.cache_config import DrawsCapture
    from teacher_cache.codec.permutation import CodeTable
    from teacher_cache.shards.marks import read_table
    from teacher_cache.shards.reader import CacheReader
    from teacher_cache.shards.storage import Storage
    from teacher_cache.signals.draws.codec import DrawsCodec
    from teacher_cache.signals.draws.record import DrawsSample

    url = str(folder / "cache")
    reader = CacheReader(url, ("tokens",))
    manifest = reader.manifest
    totals, draws = manifest.totals, manifest.capture.draws
    fixed = totals.index_bytes + sum(size for signal, size in totals.bytes.items() if signal != "draws")
    if draws is None:
        return {str(t): fixed / totals.tokens for t in TEMPERATURES}
    reader = CacheReader(url, ("tokens", "draws"))
    codec_of = DrawsCapture(n=draws.n, region=draws.region, temperatures=[1.0])
    (digest,) = manifest.tables
    table = CodeTable(read_table(Storage(url), digest, manifest.teacher.vocab_size))
    codec = DrawsCodec(codec_of, manifest.codec, table)
    sizes = dict.fromkeys(draws.temperatures, 0.0)
    for number in range(len(reader)):
        sample = reader.read_draws(number)
        both = len(reader.payload(number, "draws"))
        alone = [
            len(codec.encode(DrawsSample(sample.positions, sample.ids[:, [c]], sample.entropy[:, [c]])))
            for c in range(len(draws.temperatures))
        ]
        for temperature, size in zip(draws.temperatures, alone, strict=True):
            sizes[temperature] += both * size / sum(alone)
    padding = totals.bytes["draws"] / sum(sizes.values())  # overhead factor of the tar
    return {str(t): (fixed + padding * size) / totals.tokens for t, size in sizes.items()}


def student_of(form: str, temperature: float, seed: int, steps: int) -> dict[str, Any]:
    """Train and evaluate one student in its own process, unless its result exists."""
    name = f"{key(form, temperature)} seed {seed} steps {steps}".replace(" ", "-").replace(",", "")
    done = FOLDER / "students" / f"{name}.json"
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        print(f"   {name}", end=": ", flush=True)
        result = in_own_process(train_and_evaluate, form, temperature, seed, steps)
        print(f"KL {result['kl']:.4f} nat, {result['tokens_per_second']:.0f} tok/s", flush=True)
        done.write_text(json.dumps(result, indent=1))
    return json.loads(done.read_text())


def train_and_evaluate(form: str, temperature: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one student with the trainer's data order and losses, in a plain loop that can also hold a teacher."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from schemas.train_config import LossConfig
    from trainer.data.batches import CacheRows, evaluation_loader
    from trainer.data.open_caches import open_cache, read_capture
    from trainer.data.order import CacheOrder, Shuffle
    from trainer.data.row_plan import plan_rows
    from trainer.data.selection import Selection, Subset
    from trainer.data.validation_data import open_for_evaluation, sorted_rows
    from trainer.evaluate import evaluate, head_on
    from trainer.losses.objective import Objective
    from trainer.losses.teacher_rows import teacher_rows
    from trainer.student.build import load_model
    from trainer.student.forward import masked_hidden, output_head

    torch.manual_seed(seed)
    tla: dict[str, Any] = {"temperature": temperature, "weight": {"start": 1, "end": 1}}
    tla |= {"tail": "renormalise"} if form == RENORMALISED else {}
    losses = LossConfig.model_validate(HARD if form in (FLOOR, UNTRAINED) else {"tla": tla})
    url = str(cache_folder(form if form in CACHES else "top_k 64") / "cache")
    capture = read_capture(url)
    student: Any = load_model(FOLDER / "student-init", key="student", dtype=torch.float32)
    head = output_head(student)
    if form == CEILING:
        teacher: Any = load_model(make_teacher(), key="teacher", dtype=torch.float32)
        objective: Any = online_objective(losses, capture, teacher)
    else:
        objective = Objective(losses, capture)
    cache = open_cache(url, objective.signals)
    teacher_head = cache.read_head() if "final" in cache.signals else None

    order = CacheOrder(Subset(cache, Selection()), Shuffle(seed, shards_mixed=64))
    plan = plan_rows([order], None, global_batch=MICRO_BATCH, epochs=1, max_steps=max(1, steps))
    rows = CacheRows(cache, plan)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    student.train()
    tokens, start = 0, time.perf_counter()
    for step in range(steps):
        batch = rows.__getitems__(list(range(step * MICRO_BATCH, (step + 1) * MICRO_BATCH)))
        if form == CEILING:
            objective.losses["tla"].listen(batch)
        hidden_ND = masked_hidden(student, batch)
        loss, _ = objective.head_terms(hidden_ND, head, teacher_rows(batch, teacher_head), step / steps)
        (loss / len(hidden_ND)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int(batch["attention_mask"].sum())
    seconds = time.perf_counter() - start
    held_out = open_for_evaluation(str(FOLDER / "held-out/cache"))
    loader = evaluation_loader(held_out, sorted_rows(Subset(held_out, Selection())), MICRO_BATCH)
    measured = evaluate(student, loader, held_out.manifest.capture, head_on(student.device, held_out))
    return {**measured, "tokens_trained": tokens, "tokens_per_second": tokens / seconds}


def online_objective(losses: Any, capture: Any, teacher: Any) -> Any:
    """An Objective with targets from a resident teacher."""
    import torch

    from trainer.losses.objective import Objective
    from trainer.losses.targets import DenseTarget
    from trainer.losses.tla import Tla
    from trainer.student.forward import masked_hidden, output_head

    class Online(Tla):
        def listen(self, batch: dict[str, torch.Tensor]) -> None:
            with torch.no_grad():
                self.hidden_ND = masked_hidden(teacher, batch)

        def target_of(self, rows: Any, vocabulary: int) -> DenseTarget:
            return DenseTarget(self.hidden_ND, output_head(teacher), self.settings.temperature)

    objective = Objective(losses, capture)
    objective.losses["tla"] = Online(losses.tla, capture)
    return objective


def baseline(measured: dict[str, list[dict[str, Any]]], temperature: float) -> str:
    """The arm from which the KL's reduction is measured."""
    pairs = zip(measured[FLOOR], measured[key(CEILING, temperature)], strict=True)
    return FLOOR if all(high["kl"] < low["kl"] for low, high in pairs) else UNTRAINED


def shares(
    measured: dict[str, list[dict[str, Any]]], form: str, temperature: float, counted_from: str | None = None
) -> list[float]:
    """The share of the ceiling's KL reduction that a form keeps, in percent, one value per seed."""
    low_runs = measured[counted_from or baseline(measured, temperature)]
    return [
        100 * (low["kl"] - own["kl"]) / (low["kl"] - high["kl"])
        for low, own, high in zip(
            low_runs, measured[key(form, temperature)], measured[key(CEILING, temperature)], strict=True
        )
    ]


def table(measured: dict[str, list[dict[str, Any]]], costs: dict[str, dict[str, Any]]) -> list[Row]:
    """Quality and cost of every form at every temperature."""
    rows = []
    floor = statistics.mean(run["kl"] for run in measured[FLOOR])
    rows.append(Row(f"{UNTRAINED}: KL(teacher ‖ student)", measured[UNTRAINED][0]["kl"], "nat"))
    rows.append(Row(f"{FLOOR}: KL", floor, "nat"))
    affordable = []
    for temperature in TEMPERATURES:
        ceiling = measured[key(CEILING, temperature)]
        counted_from = baseline(measured, temperature)
        what = f"{key(CEILING, temperature)}: KL (shares are of its distance to {counted_from})"
        rows.append(Row(what, statistics.mean(run["kl"] for run in ceiling), "nat"))
        for form in [*CACHES, RENORMALISED]:
            kept = shares(measured, form, temperature)
            runs = measured[key(form, temperature)]
            cost = costs[form if form in CACHES else "top_k 64"]
            size = cost["bytes"][str(temperature)]
            speed = max(run["tokens_per_second"] for run in runs)  # other programs can only slow a run down
            mean_kl = statistics.mean(run["kl"] for run in runs)
            online_speed = max(run["tokens_per_second"] for run in ceiling)
            what = (
                f"{key(form, temperature)}: share kept ({min(kept):.1f} … {max(kept):.1f}); KL {mean_kl:.4f} nat; "
                f"{size:.0f} B/token; "
                f"captures {cost['capture_tokens_per_second']:.0f} tok/s, trains {speed / online_speed:.2f} × online; "
                f"top-1 {100 * statistics.mean(run['top1_agreement'] for run in runs):.1f} %, "
                f"calibration {100 * statistics.mean(run['calibration_error'] for run in runs):.1f} %"
            )
            mean = statistics.mean(kept)
            rows.append(at_least(what, mean, "%", 99) if form == DENSE else Row(what, mean, "%"))
            if form == DENSE and counted_from != FLOOR:
                from_floor = statistics.mean(shares(measured, form, temperature, FLOOR))
                rows.append(at_least(f"… as a share of the distance to {FLOOR}", from_floor, "%", 99))
            if temperature == 1.0 and size < 130:
                affordable.append((mean, form))
    best, form = max(affordable)
    rows.append(at_least(f"best form under 130 B/token at T = 1: {form}", best, "%", 97))
    return rows


def plot(measured: dict[str, list[dict[str, Any]]], costs: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot share kept against bytes a token, one panel per temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TEMPERATURES), figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, temperature in zip(panels, TEMPERATURES, strict=True):
        for form, cost in costs.items():
            kept = shares(measured, form, temperature)
            mean = statistics.mean(kept)
            errors = [[mean - min(kept)], [max(kept) - mean]]
            size = cost["bytes"][str(temperature)]
            panel.errorbar(size, mean, yerr=errors, fmt="o", capsize=3, label=form)
        panel.axhline(100, color="gray", linewidth=0.8)
        panel.axhline(0, color="gray", linewidth=0.8)
        title = f"T = {temperature:g}, reduction from {baseline(measured, temperature)}"
        panel.set(title=title, xlabel="bytes per token, everything included", xscale="log")
        panel.set_ylim(bottom=max(-60, panel.get_ylim()[0]))
        panel.set_xticks(SIZES, [str(size) for size in SIZES])
        panel.minorticks_off()
    panels[0].set_ylabel("share of online distillation's\nKL reduction kept, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
