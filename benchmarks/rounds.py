"""A student on its own text against a student on text of others: where each ends close to its teacher.

The teacher is SmolLM2-135M; the student is cut from it (22 of 30 layers) and warmed up on a teacher-forced corpus of
short questions with answers that people wrote, until it can write at all. From these same weights every arm goes on
for equal steps over equal rows of packed tokens, with the same optimiser; a seed sets the order of the data and what
is drawn:

- corpus: more of that corpus, scored by the teacher;
- teacher-written: the teacher's replies to questions of the corpus;
- own text: two rounds of ``train-student rounds``, in each of which the student replies to the same questions.

Measured on held-out questions, over whole distributions: KL on the answers that people wrote, on the teacher's
replies, and on what the trained student itself writes, all of it, also what a round would reject; how long its replies
are, and how much of them repeats what they said before.

Results are kept in runs/rounds, so that an interrupted run resumes.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process
from benchmarks.support.corpus import write_chats
from benchmarks.support.docstrings import docstring_chats
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_picture
from benchmarks.support.results import Row, write_results
from benchmarks.support.students import CACHE_CONFIG, TOP_64, TRAIN_CONFIG, options

FOLDER = Path("runs/rounds")
PICTURE = Path("docs/pictures/rounds.png")
PROMPTS, HELD_OUT, NEW_TOKENS = 128, 64, 80
ROUNDS, STEPS, WARM_UP_STEPS = 2, 16, 40  # steps of each round
ROW_TOKENS, ROWS = 256, 2  # of a step
WARM_UP_RATE, RATE = 3e-4, 2e-4
GRAM = 4
READ = 32  # of the texts that no student wrote
CORPUS, TEACHER, OWN = "corpus", "teacher-written", "own text"
ARMS = (CORPUS, TEACHER, OWN)
ENGINE = {"kind": "vllm", "eager": True, "cpu_kv_cache_gib": 1}
MEASURES = {
    "held-out": "KL on held-out answers, nat",
    "teacher": "KL on the teacher's replies, nat",
    "own": "KL on its own replies, nat",
    "own_reverse": "reverse KL on its own replies, nat",
    "repeated": "4-grams of a reply that it had before, %",
    "tokens": "tokens of a reply",
}


def main() -> int:
    """Train and measure every student that has not been; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="orders and draws (default: 0 1 2)")
    parser.add_argument("--at-most", type=int, help="do so many runs at most; end without a table if some lack")
    arguments = parser.parse_args()
    teacher = make_teacher()
    runs = [(arm, seed) for seed in arguments.seeds for arm in ("warm-up", *ARMS)]
    runs = [run for run in runs if run[0] != "warm-up" or run[1] == arguments.seeds[0]]
    missing = [run for run in runs if not result_file(*run).exists()]
    if missing:
        prepare(teacher)
    for arm, seed in missing[: arguments.at_most]:
        train(arm, seed, teacher)
    if arguments.at_most is not None and len(missing) > arguments.at_most:
        print(f"{len(missing) - arguments.at_most} of {len(runs)} runs are not done yet")
        return 0
    measured = {arm: [json.loads(result_file(arm, seed).read_text()) for seed in arguments.seeds] for arm in ARMS}
    before = json.loads(result_file("warm-up", arguments.seeds[0]).read_text())
    replies = in_own_process(form_of, FOLDER / "teacher-held-out")
    rows = table(before, measured, replies)
    raw = {
        "seeds": arguments.seeds,
        "rounds": ROUNDS,
        "steps_of_a_round": STEPS,
        "warm_up_steps": WARM_UP_STEPS,
        "tokens_per_step": ROWS * ROW_TOKENS,
        "learning_rates": [WARM_UP_RATE, RATE],
        "prompts": PROMPTS,
        "held_out_prompts": HELD_OUT,
        "new_tokens_at_most": NEW_TOKENS,
        "warm_up": before,
        "teacher_replies": replies,
        "arms": measured,
    }
    seeds = f"{len(arguments.seeds)} seed{'s' * (len(arguments.seeds) > 1)}"
    write_results("rounds", f"Rounds on the student's own text: {seeds}, held-out questions", rows, raw)
    plot(before, measured, replies, PICTURE)
    return 0


def result_file(arm: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    return FOLDER / "results" / f"{arm.replace(' ', '-')}-seed-{seed}.json"


def prepare(teacher: Path) -> None:
    """Write texts, caches and the teacher's replies, unless they exist."""
    training, held_out = docstring_chats()
    for name, chats in (("corpus", training), ("prompts", training[:PROMPTS]), ("held-out", held_out[:HELD_OUT])):
        if not (FOLDER / f"{name}.jsonl").exists():
            write_chats(FOLDER / f"{name}.jsonl", chats)
    cache(teacher, "corpus", f"{{path: {FOLDER}/corpus.jsonl}}")
    cache(teacher, "held-out", f"{{path: {FOLDER}/held-out.jsonl}}")
    generate(teacher, "teacher-held-out", FOLDER / "held-out.jsonl", samples=1, seed=1)
    generate(teacher, "teacher-replies", FOLDER / "prompts.jsonl", samples=ROUNDS, seed=0)
    cache(teacher, "teacher-written", f"{{path: {FOLDER}/teacher-replies, format: generated}}")


def cache(teacher: Path, name: str, source: str) -> None:
    """Run ``teacher-cache run`` on a source; does nothing that is done."""
    changes = [
        f"teacher={{path: {teacher}, dtype: bfloat16}}",
        "engine={kind: vllm}",
        f"corpus={{sources: [{source}], max_tokens: {ROW_TOKENS}}}",
        f"output={{path: {FOLDER / name}-cache}}",
        *TOP_64,
        "capture.logits.temperatures=[1.0]",
        "provenance.notes=Made by benchmarks.rounds.",
    ]
    if not (FOLDER / f"{name}.done").exists():
        run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
        (FOLDER / f"{name}.done").touch()


def generate_settings(prompts: Path, samples: int, seed: int) -> dict[str, Any]:
    """The settings of a generation, but for the generator and its output."""
    return {
        "generator": {"dtype": "bfloat16"},
        "engine": ENGINE,
        "prompts": {"sources": [{"path": str(prompts)}], "replies": "replace", "max_tokens": ROW_TOKENS - NEW_TOKENS},
        "sampling": {"samples": samples, "max_new_tokens": NEW_TOKENS},
        "reject": {"repeated_tokens": 24},
        "seed": seed,
    }


def generate(model: Path, name: str, prompts: Path, samples: int, seed: int) -> Path:
    """Run ``teacher-cache generate`` with a model; does nothing that is done. Returns the folder of replies."""
    place = FOLDER / name
    if not (FOLDER / f"{name}.done").exists():
        tree = generate_settings(prompts, samples, seed)
        tree["generator"]["path"] = str(model)
        tree["output"] = {"path": str(place)}
        path = FOLDER / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        run_installed("teacher-cache", "generate", path, "--json")
        (FOLDER / f"{name}.done").touch()
    return place


def training(cache_name: str, student: dict[str, Any], seed: int, steps: int, rate: float) -> dict[str, Any]:
    """The settings of a training."""
    return {
        "data": {"cache": f"{FOLDER / cache_name}-cache", "packing": True, "pack_tokens": ROW_TOKENS},
        "student": student,
        "losses": {"tla": {"target": "top_k"}},
        "optimizer": {"lr": rate, "warmup_steps": 2},
        "loop": {"max_steps": steps, "micro_batch_size": ROWS, "bf16": True, "seed": seed, "save_every": 10_000},
    }


def train(arm: str, seed: int, teacher: Path) -> None:
    """Train a student, measure it, and write the result."""
    done = result_file(arm, seed)
    output = FOLDER / "students" / done.stem
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if arm == OWN:
        facts, student = rounds(seed, teacher, output)
    else:
        tree = {
            "warm-up": lambda: training("corpus", first_student(teacher), seed, WARM_UP_STEPS, WARM_UP_RATE),
            CORPUS: lambda: training("corpus", warm_student(), seed + 1, ROUNDS * STEPS, RATE),
            TEACHER: lambda: training("teacher-written", warm_student(), seed + 1, ROUNDS * STEPS, RATE),
        }[arm]()
        path = written(output.with_suffix(".yaml"), tree | {"output": str(output)})
        summary = run_installed("train-student", "run", path, "--json").json
        facts, student = {"trained_tokens": summary["tokens"]}, output / "final"
    seconds = time.perf_counter() - start
    replies = generate(student, f"{done.stem}-replies", FOLDER / "held-out.jsonl", samples=1, seed=seed)
    found = in_own_process(measured_by, student, teacher, replies) | facts | {"seconds": round(seconds)}
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(found, indent=1))
    if arm != "warm-up":
        shutil.rmtree(output)
    print(f"   {done.stem}: {found}", flush=True)


def first_student(teacher: Path) -> dict[str, Any]:
    """The student before any training: layers of its teacher, as the demo's."""
    from_layers = yaml.safe_load(TRAIN_CONFIG.read_text())["student"]["from_layers"]
    return {"teacher": str(teacher), "from_layers": from_layers}


def warm_student() -> dict[str, Any]:
    """The student that every arm starts from."""
    (place,) = (FOLDER / "students").glob("warm-up-seed-*/final")
    return {"checkpoint": str(place)}


def rounds(seed: int, teacher: Path, output: Path) -> tuple[dict[str, Any], Path]:
    """Run ``train-student rounds``; returns what it says of the rounds, and the trained student."""
    asked = generate_settings(FOLDER / "prompts.jsonl", samples=1, seed=10 * seed)
    tree = {
        "rounds": ROUNDS,
        "generate": asked,
        "score": {"teacher": {"path": str(teacher), "dtype": "bfloat16"}},
        "train": training("corpus", warm_student(), seed + 1, STEPS, RATE),
        "mixture": {"share": 1},
        "least_accepted": 0.2,
        "keep": "none",
        "output": str(output),
    }
    summary = run_installed("train-student", "rounds", written(output.with_suffix(".yaml"), tree), "--json").json
    trained = sum(each["trained_tokens"] for each in summary["rounds"])
    return {"trained_tokens": trained, "rounds": summary["rounds"]}, Path(summary["student"])


def written(path: Path, tree: dict[str, Any]) -> Path:
    """Write a configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def measured_by(student: Path, teacher: Path, replies: Path) -> dict[str, Any]:
    """What is measured of a student whose replies to the held-out questions are in a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.bfloat16).eval() for each in (student, teacher)
    )
    own = divergences(ours, theirs, sequences_of(replies))
    return {
        "held-out": divergences(ours, theirs, cached_sequences(FOLDER / "held-out-cache")[:READ])[0],
        "teacher": divergences(ours, theirs, sequences_of(FOLDER / "teacher-held-out")[:READ])[0],
        "own": own[0],
        "own_reverse": own[1],
        **form_of(replies),
    }


def sequences_of(place: Path) -> list[tuple[list[int], int]]:
    """Token ids of prompts with their replies, accepted or not, and the place where each reply begins."""
    from teacher_cache.generated.generated_place import read_generated, replies_of
    from teacher_cache.shards.storage import Storage

    storage = Storage(str(place))
    return [
        ([*prompt.prompt_ids.tolist(), *reply.reply_ids.tolist()], len(prompt.prompt_ids))
        for prompt, reply in replies_of(storage, read_generated(storage))
    ]


def cached_sequences(place: Path) -> list[tuple[list[int], int]]:
    """Token ids of a cache's chats of one question and one answer, and the place where each answer begins."""
    from teacher_cache.shards.reader import CacheReader

    cache = CacheReader(str(place), ("tokens",))
    samples = map(cache.read_tokens, range(len(cache)))
    return [(sample.input_ids.tolist(), int(sample.loss_mask.argmax()) + 1) for sample in samples]


def divergences(student: Any, teacher: Any, sequences: Sequence[tuple[list[int], int]]) -> tuple[float, float]:
    """Mean KL(teacher ‖ student) and KL(student ‖ teacher) of a reply's token, nats."""
    import torch

    totals, tokens = torch.zeros(2, dtype=torch.float64), 0
    with torch.inference_mode():
        for ids, begin in sequences:
            s, t = (rows_of(model, ids, begin).log_softmax(-1) for model in (student, teacher))
            totals += torch.stack([(t.exp() * (t - s)).sum(), (s.exp() * (s - t)).sum()])
            tokens += len(s)
    forward, reverse = (totals / tokens).tolist()
    return forward, reverse


def rows_of(model: Any, ids: list[int], begin: int) -> Any:
    """Logits [tokens of the reply, V] that predict the reply."""
    import torch

    return model(torch.tensor([ids]), logits_to_keep=len(ids) - begin + 1).logits[0, :-1].float()


def form_of(place: Path) -> dict[str, Any]:
    """Length and repetition of replies, and how many were rejected for what."""
    from teacher_cache.generated.generated_place import read_generated
    from teacher_cache.shards.storage import Storage

    replies = [ids[begin:] for ids, begin in sequences_of(place)]
    rejected: dict[str, int] = {}
    for shard in read_generated(Storage(str(place))).shards:
        for reason, count in shard.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return {
        "tokens": statistics.mean(map(len, replies)),
        "repeated": repeated(replies),
        "replies": len(replies),
        "rejected": rejected,
    }


def repeated(replies: Sequence[Sequence[int]]) -> float:
    """Share of all 4-grams of tokens that their reply had before, percent."""
    grams = [[tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)] for ids in replies]
    total = sum(map(len, grams))
    return 100 * (total - sum(len(set(each)) for each in grams)) / max(1, total)


def table(before: dict[str, Any], measured: dict[str, list[dict[str, Any]]], replies: dict[str, Any]) -> list[Row]:
    """Every measure of every arm: its mean, and smallest and largest value over seeds."""
    before, replies = (each | {"rejected": rejected_share(each)} for each in (before, replies))
    measured = {arm: [run | {"rejected": rejected_share(run)} for run in runs] for arm, runs in measured.items()}
    rows = []
    for key, title in (MEASURES | {"rejected": "replies that a round rejects, most as cut off, %"}).items():
        what, _, unit = title.rpartition(", ") if ", " in title else (title, "", "tokens")
        if key in replies:
            rows.append(Row(f"{what}: the teacher", replies[key], unit))
        rows.append(Row(f"{what}: warmed up" if key not in replies else "… warmed up", before[key], unit))
        for arm, runs in measured.items():
            values = [run[key] for run in runs]
            rows.append(Row(f"… {arm} ({min(values):.3g} … {max(values):.3g})", statistics.mean(values), unit))
    return rows


def rejected_share(run: dict[str, Any]) -> float:
    """Share of the replies to held-out questions that a round would not learn from, percent."""
    return 100 * sum(run["rejected"].values()) / run["replies"]


def plot(
    before: dict[str, Any], measured: dict[str, list[dict[str, Any]]], replies: dict[str, Any], path: Path
) -> None:
    """A panel for each measure: a dot for each seed, a line where the warmed-up student and the teacher are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 3, figsize=(11, 4.5), layout="constrained", sharey=True)
    for panel, (key, title) in zip(grid.flatten(), MEASURES.items(), strict=True):
        panel.axvline(before[key], color="gray", linewidth=0.8, linestyle="--", label="warmed up")
        if key in replies:
            panel.axvline(replies[key], color="tab:green", linewidth=0.8, label="teacher")
        for at, (arm, runs) in enumerate(measured.items()):
            values = [run[key] for run in runs]
            color = "tab:blue" if arm == OWN else "tab:gray"
            panel.plot(values, [at] * len(values), ".", color=color, markersize=6)
            panel.plot([statistics.mean(values)], [at], "|", color=color, markersize=14)
        panel.set_yticks(range(len(measured)), list(measured))
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    grid[0, 0].invert_yaxis()
    grid[0, 0].legend(fontsize=7)
    grid[1, 1].legend(fontsize=7)
    save_picture(figure, path)


if __name__ == "__main__":
    sys.exit(main())
