"""Exactness of stored values: against a plain transformers forward pass, and vLLM against transformers.

First, ``teacher-cache run`` writes a cache with the transformers engine in float32; every value read back is compared
with a float64 ``log_softmax`` over an independent forward pass, one sequence at a time, which shares no code with the
engines. Second, both engines score the same sequences, each in its own process; also in bf16, without a bar.

Near-ties: entries that differ by less than float32 noise have no defined order. An id in only one side's top k is
therefore excused if its log-probability is within the tolerance of that side's k-th.
"""

import sys
from typing import Any

import numpy as np

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import (
    FOLDER,
    TEMPERATURES,
    K,
    as_config,
    cached,
    digest,
    in_own_process,
    sequences_of,
    settings,
)
from benchmarks.support.results import Row, at_most, exit_status, write_results
from schemas.cache_config import CodecConfig
from teacher_cache.records import LogitsSample, Request
from teacher_cache.shards.reader import CacheReader

FLOAT32_NOISE = 2e-3
TIE = 2e-4
ENGINE_TOLERANCE = 2e-2


def main() -> int:
    """Run the benchmark; returns the exit status."""
    folder = FOLDER / "exactness"
    tree = settings(folder, modules=8, characters=1_500, max_tokens=256, max_batch_tokens=1024)
    tree["engine"]["kind"] = "transformers"
    cached(folder, tree)
    reader = CacheReader(tree["output"]["path"])
    sequences = sequences_of(reader, limit=8)
    stored = [reader.read_logits(i) for i in range(len(sequences))]
    print(f"{len(sequences)} sequences, {sum(map(len, sequences))} tokens; forward pass in float32", flush=True)
    against_forward = compare_with_forward(sequences, stored)
    print("both engines in float32, then in bf16", flush=True)
    in_float32 = {kind: scored(tree, kind, "float32", sequences) for kind in ("vllm", "transformers")}
    float32 = compare_engines(in_float32["vllm"], in_float32["transformers"])
    short = [ids[:128] for ids in sequences[:4]]
    in_bf16 = {kind: scored(tree, kind, "bfloat16", short) for kind in ("vllm", "transformers")}
    bf16 = compare_engines(in_bf16["vllm"], in_bf16["transformers"])
    exact = [first_rows(sample, 128) for sample in in_float32["transformers"][:4]]
    rounding = {kind: compare_engines(samples, exact) for kind, samples in in_bf16.items()}

    half_step = 0.5 / CodecConfig().logprob_steps_per_nat
    rows = [
        at_most("stored log-probability: largest error", against_forward["logprob"], "nat", half_step + FLOAT32_NOISE),
        at_most("stored log-partition: largest error", against_forward["log_partition"], "nat", 1e-3),
        at_most("realised token's log-probability: largest error", against_forward["next_logprob"], "nat", 1e-3),
        at_most("ids outside the true top k, ties excused", against_forward["wrong_ids"], "ids", 0),
        at_most("vLLM against transformers, float32: largest difference", float32["logprob"], "nat", ENGINE_TOLERANCE),
        at_most("… realised token's log-probability", float32["next_logprob"], "nat", ENGINE_TOLERANCE),
        at_most("… log-partition", float32["log_partition"], "nat", ENGINE_TOLERANCE),
        at_most("… ids of one engine only, near-ties excused", float32["wrong_ids"], "ids", 0),
        Row("vLLM against transformers, bf16: largest difference", bf16["logprob"], "nat"),
        Row("… mean difference", bf16["logprob_mean"], "nat"),
        Row("… ids of one engine only", 100 * bf16["differing_ids"] / bf16["ids"], "% of ids"),
        Row("vLLM in bf16 against float32: mean difference", rounding["vllm"]["logprob_mean"], "nat"),
        Row("transformers in bf16 against float32: mean difference", rounding["transformers"]["logprob_mean"], "nat"),
    ]
    raw = {
        "k": K,
        "temperatures": TEMPERATURES,
        "tie_tolerance": TIE,
        "engine_tolerance": ENGINE_TOLERANCE,
        "tokens": sum(map(len, sequences)),
        "sequences": digest(sequences),
        "stored_against_forward": against_forward,
        "vllm_against_transformers_float32": float32,
        "vllm_against_transformers_bf16": bf16 | {"tokens": sum(map(len, short))},
        "bf16_against_float32": rounding,
    }
    write_results("exactness", "Exactness: SmolLM2-135M, K = 64, code", rows, raw)
    return exit_status(rows)


def compare_with_forward(sequences: list[np.ndarray], stored: list[LogitsSample]) -> dict[str, Any]:
    """Largest errors of stored values against an independent forward pass, and the number of wrong ids."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_teacher(), dtype=torch.float32).eval()
    errors: dict[str, list[float]] = {"logprob": [], "log_partition": [], "next_logprob": [], "tie": []}
    wrong = differing = 0
    for ids, sample in zip(sequences, stored, strict=True):
        with torch.inference_mode():
            logits_SV = model(torch.from_numpy(ids)[None]).logits[0].double()
        log_p_PV = logits_SV.log_softmax(dim=-1)[torch.from_numpy(sample.positions)]
        true_PV = log_p_PV.numpy()
        at_PK = np.take_along_axis(true_PV, sample.ids.astype(np.int64), axis=1)
        kth_P1 = -np.partition(-true_PV, K - 1, axis=1)[:, K - 1 :][:, :1]
        short_PK = np.maximum(kth_P1 - at_PK, 0)  # distance of a stored entry below the true k-th
        realised = sample.positions < len(ids) - 1
        next_P = true_PV[realised, ids[1:][sample.positions[realised]]]
        partition_PT = torch.stack([(log_p_PV / t).logsumexp(dim=-1) for t in TEMPERATURES], dim=1).numpy()
        errors["logprob"].append(float(np.abs(sample.logprobs - at_PK).max()))
        errors["log_partition"].append(float(np.abs(sample.log_partition - partition_PT).max()))
        errors["next_logprob"].append(float(np.abs(sample.next_logprob[realised] - next_P).max()))
        errors["tie"].append(float(short_PK.max()))
        differing += int((short_PK > 0).sum())
        wrong += int((short_PK > TIE).sum()) + int((sample.counts != K).sum())
        wrong += sum(K - len(set(row)) for row in sample.ids.tolist())  # ids stored twice
    return {name: max(values) for name, values in errors.items()} | {"differing_ids": differing, "wrong_ids": wrong}


def scored(tree: dict[str, Any], kind: str, dtype: str, sequences: list[np.ndarray]) -> list[LogitsSample]:
    """Samples scored by an engine in a separate process, which then ends."""
    changed = tree | {
        "teacher": tree["teacher"] | {"dtype": dtype},
        "engine": tree["engine"] | {"kind": kind},
    }
    return in_own_process(_score, changed, sequences)


def _score(tree: dict[str, Any], sequences: list[np.ndarray]) -> list[LogitsSample]:
    from teacher_cache.engines import open_engine

    with open_engine(as_config(tree)) as engine:
        requests = [Request(ids, np.arange(len(ids), dtype=np.int32)) for ids in sequences]
        return [captured.logits for captured in engine.score(requests)]


def first_rows(sample: LogitsSample, rows: int) -> LogitsSample:
    """A sample's first rows, which by causal attention are the sample of the truncated sequence."""
    arrays = {name: array[:rows] for name, array in vars(sample).items() if name != "num_tokens"}
    return LogitsSample(num_tokens=rows, **arrays)


def compare_engines(left: list[LogitsSample], right: list[LogitsSample]) -> dict[str, Any]:
    """Differences between two engines' values at shared ids, and counts of ids that only one of them has."""
    at_common: list[np.ndarray] = []
    next_logprob = log_partition = tie = 0.0
    differing = wrong = total = 0
    for a, b in zip(left, right, strict=True):
        same_SKK = a.ids[:, :, None] == b.ids[:, None, :]
        row, i, j = same_SKK.nonzero()
        at_common.append(np.abs(a.logprobs[row, i].astype(np.float64) - b.logprobs[row, j]))
        next_logprob = max(next_logprob, float(np.abs(a.next_logprob - b.next_logprob)[:-1].max()))
        log_partition = max(log_partition, float(np.abs(a.log_partition - b.log_partition).max()))
        for sample, found_SK in ((a, same_SKK.any(axis=2)), (b, same_SKK.any(axis=1))):
            above_kth = (sample.logprobs - sample.logprobs[:, -1:])[~found_SK]
            differing += len(above_kth)
            wrong += int((above_kth > ENGINE_TOLERANCE).sum())
            tie = max(tie, float(above_kth.max(initial=0)))
            total += sample.ids.size
    difference = np.concatenate(at_common)
    return {
        "logprob": float(difference.max()),
        "logprob_mean": float(difference.mean()),
        "logprob_p99": float(np.quantile(difference, 0.99)),
        "next_logprob": next_logprob,
        "log_partition": log_partition,
        "tie": tie,
        "ids": total,
        "differing_ids": differing,
        "wrong_ids": wrong,
    }


if __name__ == "__main__":
    sys.exit(main())
