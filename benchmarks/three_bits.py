"""What three-bit weights cost SmolLM2-135M, and whether third parties read the files as they were meant.

The model is the real teacher; scales come from the tokens of the shared cache, and the measure is the KL from the
16-bit model on modules of the standard library that the cache does not have, with perplexity beside it. Rounding to the
nearest, with unsigned and signed scales, is what activation-aware scales are compared with. Files are written with
``train-student export``; the libraries that read them are compressed-tensors (through transformers) and vLLM. Groups of
128 do not divide the model's width, so their size is that of its down projections. Each arm's figures are kept in
runs/three-bits, so that an interrupted run resumes.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import in_own_process, shared_cache
from benchmarks.support.corpus import standard_library
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.teacher_kl import Judge, load

FOLDER = Path("runs/three-bits")
SAMPLES, MAX_TOKENS = 8, 256  # of the calibration
MODULES, MODULE_TOKENS, EVERY = 8, 512, 4  # held out
SEEN = 16  # modules in the shared cache, the first of at least MIN_CHARACTERS
MIN_CHARACTERS = 18_000
PUBLISHED_KL = 1.01  # of AWQ with signed scales, each matrix scaled on its own
FOLDED_COSTS = 1.25  # folded scales are shared by several matrices
ABSMAX, SIGNED = "round to nearest, absmax / 4, g64", "round to nearest, signed scales, g64"
AWQ_64, AWQ_32, DOWN_128 = "activation-aware, folded, g64", "activation-aware, folded, g32", "down_proj only, g128"
FILES = {AWQ_64: (64, True, ()), AWQ_32: (32, False, ()), DOWN_128: (128, False, ("down_proj",))}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    shared_cache()
    measured = {arm: kept(arm) for arm in ("16 bits", ABSMAX, SIGNED, *FILES)}
    kl = {arm: figures["kl"] for arm, figures in measured.items() if "kl" in figures}
    rows = [Row("16 bits: perplexity", measured["16 bits"]["perplexity"])]
    for arm in (ABSMAX, SIGNED, AWQ_64, AWQ_32):
        limited = at_most(f"{arm}: KL", kl[arm], "nats", PUBLISHED_KL * FOLDED_COSTS)
        rows.append(limited if arm == AWQ_64 else Row(f"{arm}: KL", kl[arm], "nats"))
        rows.append(Row(f"{arm}: perplexity", measured[arm]["perplexity"]))
    rows.append(at_most("KL, activation-aware ÷ signed rounding, g64", kl[AWQ_64] / kl[SIGNED], "×", 1))
    for arm, limit in ((AWQ_64, 3.3), (DOWN_128, 3.2), (AWQ_32, None)):
        bits = measured[arm]["bits_per_weight"]["dense"]
        what = f"bits a weight in the dense file, {arm.rpartition(' ')[2]}"
        rows.append(Row(what, bits, "bits") if limit is None else at_most(what, bits, "bits", limit))
    for form in ("dense", "container"):
        differing = sum(figures["differing"][form] for figures in measured.values() if "differing" in figures)
        rows.append(at_most(f"weights that compressed-tensors reads differently, {form}", differing, "", 0))
    for engine, by_form in measured[AWQ_64]["largest_difference"].items():
        for form, difference in by_form.items():
            where = f"{engine}, unpacked at load" if engine == "vllm" else engine
            what = f"{form} in {where}: log-probabilities, largest difference from the folded copy"
            rows.append(at_most(what, difference, "nats", 1e-3))
    own = measured[AWQ_64]["own_kernel"]
    rows += [
        Row("container with vLLM's own 4-bit kernel for CPUs: largest difference", own["largest"], "nats"),
        Row("… mean difference", own["mean"], "nats"),
        Row("… greedy tokens that are the folded copy's", f"{own['same_tokens']} of {own['tokens']}"),
    ]
    write_results("three_bits", "Three-bit weights: SmolLM2-135M, held-out code", rows, measured)
    return exit_status(rows)


def kept(arm: str) -> dict[str, Any]:
    """The figures of an arm, measured unless they are kept."""
    path = FOLDER / f"{arm}.json".replace("/", "of")
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        measured = in_own_process(export_arm if arm in FILES else rounding_arm, arm)
        path.write_text(json.dumps(measured, indent=1))
    return json.loads(path.read_text())


def rounding_arm(arm: str) -> dict[str, Any]:
    """Quality of the 16-bit model, or of rounding it as it is."""
    from trainer.quantization.grid import Grid
    from trainer.quantization.prepass import round_in_place
    from trainer.quantization.sites import find_sites

    model = load(make_teacher())
    if arm in (ABSMAX, SIGNED):
        grid = Grid(3, 64)
        sites = find_sites(model, grid)
        scales = {reader.stored: grid.scales(reader.of(model)).bfloat16() for site in sites for reader in site.readers}
        if arm == ABSMAX:
            scales = {name: scale.abs() for name, scale in scales.items()}
        round_in_place(model, sites, scales, grid)
    return quality(model)


def export_arm(arm: str) -> dict[str, Any]:
    """Export the model; quality of the folded copy, sizes, and weights that the packed folders give differently."""
    from trainer.quantization.exporting import ExportSettings, export_folder
    from trainer.quantization.grid import Grid
    from trainer.quantization.sites import TARGETS

    group_size, check, targets = FILES[arm]
    folder = FOLDER / f"g{group_size}"
    shutil.rmtree(folder, ignore_errors=True)
    settings = ExportSettings(
        Grid(3, group_size), ("dense", "container", "folded"), targets or TARGETS, SAMPLES, MAX_TOKENS, check
    )
    summary = export_folder(str(make_teacher()), folder, str(shared_cache()[0]), settings)
    differing = {form: differing_weights(folder / form, folder / "folded") for form in ("dense", "container")}
    measured = {**summary, "differing": differing}
    if not targets:
        measured |= quality(load(folder / "folded"))
    if check:
        measured["own_kernel"] = own_kernel(folder)
    return measured


def own_kernel(folder: Path) -> dict[str, Any]:
    """How vLLM's own kernel for 4 bits, which adds in another order, differs from the folded copy in vLLM."""
    from teacher_cache.shards.reader import CacheReader
    from trainer.quantization.prepass import PROMPT
    from trainer.quantization.smoke import in_vllm

    ids = CacheReader(str(shared_cache()[0]), ("tokens",)).read_tokens(0).input_ids[:PROMPT].tolist()
    said = in_vllm(folder / "container", ids, trust_remote_code=False, own_kernel=True)
    wanted = in_vllm(folder / "folded", ids, trust_remote_code=False)
    away = (said.log_probabilities - wanted.log_probabilities)[: PROMPT - 1].abs()
    same = sum(a == b for a, b in zip(said.tokens, wanted.tokens, strict=True))
    return {
        "largest": float(away.max()), "mean": float(away.mean()), "same_tokens": same, "tokens": len(wanted.tokens),
    }  # fmt: skip


def differing_weights(packed: Path, folded: Path) -> int:
    """How many weights the packed folder's reader gives that are not those of the folded copy."""
    import torch
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(packed)
    read(torch.tensor([[1]]))  # decompresses
    wanted: Any = AutoModelForCausalLM.from_pretrained(folded)
    found = read.state_dict()
    return sum(int((found[name] != weight).sum()) for name, weight in wanted.state_dict().items())


def quality(model: Any) -> dict[str, Any]:
    """KL from the 16-bit model, nats a token, and perplexity, over the held-out modules."""
    modules = [path for path in standard_library() if path.stat().st_size >= MIN_CHARACTERS][SEEN::EVERY][:MODULES]
    texts = [module.read_text(encoding="utf-8", errors="ignore")[:MIN_CHARACTERS] for module in modules]
    measured = Judge(texts, MODULE_TOKENS).quality(model.float())
    return {"held_out_tokens": measured.pop("tokens"), **measured}


if __name__ == "__main__":
    sys.exit(main())
