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
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process
from benchmarks.support.corpus import hold_out, standard_library, write_code
from benchmarks.support.installed import run_installed
from benchmarks.support.students import CACHE_CONFIG, TRAIN_CONFIG, options

FOLDER = Path("runs/a3b")
CHARACTERS, TOKENS = 3000, 512  # of a module to train on; of a sample
HELD_OUT, HELD_OUT_TOKENS = 24, 512  # modules, and tokens of each
STEPS, MICRO_BATCH, LEARNING_RATE = 80, 1, 2e-4
SEEDS = (0, 1, 2)
GROUP = 64
SIXTEEN, AFTER, THREE = "16 bits", "16 bits, then quantised", "3 bits"


@dataclass(frozen=True)
class Arm:
    """A student: settings of its training, and how its inputs are rounded in training and evaluation."""

    remove: float | None = 0.125  # share of the FFN channels
    quantization: str | None = None  # settings beside bits and group size
    activations: str | None = None


ARMS = {
    SIXTEEN: Arm(),
    THREE: Arm(quantization=""),
    "3 bits, learned scales": Arm(quantization="scale: learned"),
    "3 bits, clip": Arm(quantization="", activations="{clip: 99.9}"),
    "3 bits, A8": Arm(quantization="", activations="{bits: 8}"),
    "3 bits, A4": Arm(quantization="", activations="{bits: 4}"),
    "3 bits, A3": Arm(quantization="", activations="{clip: 99.9, levels: 7}"),
    "unpruned, 3 bits": Arm(remove=None, quantization=""),
    "25 % pruned, 16 bits": Arm(remove=0.25),
    "25 % pruned, 3 bits": Arm(remove=0.25, quantization=""),
}
SEEDED = (SIXTEEN, THREE)


def train(arm: str, seed: int, steps: int) -> None:
    """Train a student and measure it, unless that was done; one of 16 bits also after quantisation."""
    result = result_file(arm, seed, steps)
    if result.exists():
        return
    output = FOLDER / "students" / f"{arm}-{seed}".replace(" ", "-").replace(",", "").replace("%", "")
    shutil.rmtree(output, ignore_errors=True)
    of = ARMS[arm]
    start = f"student.teacher={make_teacher()}"
    changes = [
        f"data.cache={FOLDER / 'cache'}",
        start if of.remove else f"student.checkpoint={make_teacher()}",
        "student.from_layers=null",
        "losses={}",
        f"optimizer={{lr: {LEARNING_RATE}, warmup_steps: 4}}",
        f"loop={{max_steps: {steps}, micro_batch_size: {MICRO_BATCH}, seed: {seed}, log_every: 10, save_every: {steps},"
        " keep_checkpoints: 1}",
        f"output={output}",
    ]
    if of.remove:
        changes.append(f"student.ffn={{remove: {of.remove}, samples: 64}}")
    else:
        changes.append("student.teacher=null")
    if of.quantization is not None:
        more = ", ".join(
            part
            for part in (
                f"bits: 3, group_size: {GROUP}, calibration_samples: 32, check: false, formats: [dense]",
                of.quantization,
                f"activations: {of.activations}" if of.activations else "",
            )
            if part
        )
        changes.append(f"quantization={{{more}}}")
    run_installed("train-student", "run", TRAIN_CONFIG, *options(changes))
    measured = in_own_process(quality, str(output / "final"), of.activations, str(output / "student-init"))
    measured |= {"bytes": weights_bytes(output / "final")}
    if of.quantization is not None:
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
    source, output = FOLDER / "students" / f"16-bits-{seed}" / "final", FOLDER / "students" / f"after-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    run_installed(
        "train-student", "export", source, output, "--cache", FOLDER / "cache", "--group-size", str(GROUP),
        "--samples", "32", "--format", "folded", "--no-check", "--json",
    )  # fmt: skip
    result.write_text(json.dumps(in_own_process(quality, str(output)), indent=1))
    print(AFTER, seed, result.read_text(), flush=True)


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


def quality(folder: str, activations: str | None = None, init_folder: str | None = None) -> dict[str, Any]:
    """KL from the teacher, nats a token, and perplexity, on the held-out modules."""
    import torch
    import yaml
    from transformers import AutoTokenizer

    from schemas.train_config import ActivationsConfig
    from trainer.quantization.fake_activations import round_activations
    from trainer.quantization.grid import Grid
    from trainer.quantization.sites import find_sites
    from trainer.quantization.trained import start_scales

    torch.set_num_threads(1)
    model, teacher = load(folder), load(str(make_teacher()))
    tokenizer = AutoTokenizer.from_pretrained(make_teacher())
    if activations is not None:
        assert init_folder is not None
        settings = ActivationsConfig(**yaml.safe_load(activations))
        round_activations(model, find_sites(model, Grid(3, GROUP)), settings, start_scales(Path(init_folder))[1].clips)
    kl = loss = tokens = 0.0
    for module in hold_out(standard_library())[1][:HELD_OUT]:
        text = module.read_text(encoding="utf-8", errors="ignore")[: 8 * HELD_OUT_TOKENS]
        ids = torch.tensor([tokenizer(text)["input_ids"][:HELD_OUT_TOKENS]])
        with torch.no_grad():
            log_p, log_q = (each(ids).logits[0, :-1].log_softmax(dim=-1) for each in (teacher, model))
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        loss -= float(log_q.gather(1, ids[0, 1:, None]).sum())
        tokens += len(log_q)
    return {"kl": kl / tokens, "perplexity": float(torch.tensor(loss / tokens).exp()), "tokens": int(tokens)}


def load(folder: str) -> Any:
    """A model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def main() -> int:
    """Train and measure what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.a3b", description=str(__doc__).split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--arms", nargs="*", help="only these, without a table")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    make_cache()
    for seed in arguments.seeds:
        for arm in arguments.arms or ARMS:
            if seed == 0 or arm in SEEDED:
                train(arm, seed, arguments.steps)
            if arm == SIXTEEN:
                quantise_after(seed, arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
