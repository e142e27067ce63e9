"""Fidelity of decoded values at each precision, and its cost in bytes.

Rows from a forward pass of the real teacher are encoded and decoded. Both the stored and the true row are reduced to
their top k and one bucket for all other tokens; KL(stored ‖ true) then measures the rounding, at temperature 1 and,
through the stored log-partition, at 3. Stored rows whose entries sum to more than 1 are normalised, as the losses do.
``final`` stores a row's final hidden state instead, from which every logit is rebuilt: its KL is over the whole
vocabulary. The hidden states of ``hidden`` lose as much at each dtype.
"""

import sys
from typing import Any

import numpy as np

from benchmarks.support.common import TEMPERATURES, K, sequences_of, shared_cache
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.true_rows import Forward
from schemas.cache_config import CodecConfig, Quantised
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import Captured, LogitsSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.encoders import make_code_table
from teacher_cache.signals.hidden.codec import HiddenCodec
from teacher_cache.signals.logits.codec import LogitsCodec

SEQUENCES = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "steps of 1/8 nat": {"logprob_steps_per_nat": 8},
    "steps of 1/16 nat (the default)": {},
    "steps of 1/64 nat": {"logprob_steps_per_nat": 64},
    "bfloat16": {"logprobs": "bfloat16"},
    "float16": {"logprobs": "float16"},
    "float32": {"logprobs": "float32"},
}
FINAL_DTYPES = ("bfloat16", "int8", "float8_e4m3", "int4")
DEFAULT = "steps of 1/16 nat (the default)"


def main() -> int:
    """Run the benchmark; returns the exit status."""
    cache, _ = shared_cache()
    forward = Forward(sequences_of(CacheReader(str(cache)), limit=SEQUENCES))
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        codec = CodecConfig(**settings)
        raw[name] = measured = through_codec(forward, codec)
        what = f"log-probabilities in {name}: largest error"
        limit = 0.5 / codec.logprob_steps_per_nat
        is_default = name == DEFAULT
        rows.append(at_most(what, measured["max"], "nat", limit) if is_default else Row(what, measured["max"], "nat"))
        rows.append(Row("… mean error · KL at T = 1 · at T = 3", joined(measured, "mean", "kl_1", "kl_3"), "nat"))
        rows.append(Row("… logits payload", measured["bytes"], "B/token"))
    for dtype in FINAL_DTYPES:
        raw[f"final {dtype}"] = found = rebuilt(forward, Quantised.model_validate({"dtype": dtype}))
        rows.append(Row(f"final, {dtype}: KL of all tokens at T = 1 · at T = 3", joined(found, "kl_1", "kl_3"), "nat"))
        rows.append(Row("… mean relative L2 error of a row", 100 * found["error"], "%"))
        rows.append(Row("… payload", found["bytes"], "B/token"))
    title = f"Fidelity: {sum(len(sample.ids) for sample in forward.samples):,} real rows, K = {K}, V = 49,152"
    write_results("fidelity", title, rows, raw)
    return exit_status(rows)


def joined(values: dict[str, float], *names: str) -> str:
    """Several small figures formatted for one table cell."""
    return " · ".join(f"{values[name]:.2g}" for name in names)


def rebuilt(forward: Forward, capture: Quantised) -> dict[str, float]:
    """Mean KL(true ‖ rebuilt) over the vocabulary, mean relative error of a hidden state, and payload bytes a token."""
    import torch

    from teacher_cache.signals.hidden.capture import dequantise, quantise, to_hidden_sample

    codec = HiddenCodec(capture, CodecConfig(), layers=1, channels=forward.head_VD.shape[1])
    sums = {"kl_1": 0.0, "kl_3": 0.0, "error": 0.0, "bytes": 0.0}
    n_rows = 0
    for hidden_SD in forward.hidden_SD:
        stored = quantise(hidden_SD, capture)
        sums["bytes"] += len(codec.encode(to_hidden_sample(np.arange(len(hidden_SD), dtype=np.int32), [stored])))
        stored_SD = dequantise(*stored, capture)
        sums["error"] += float(((stored_SD - hidden_SD).norm(dim=1) / hidden_SD.norm(dim=1)).sum())
        for rows in torch.arange(len(hidden_SD)).split(64):
            true_NV, found_NV = (states[rows] @ forward.head_VD.T for states in (hidden_SD, stored_SD))
            for name, temperature in (("kl_1", 1.0), ("kl_3", 3.0)):
                log_p, log_q = ((logits.double() / temperature).log_softmax(dim=1) for logits in (true_NV, found_NV))
                sums[name] += float((log_p.exp() * (log_p - log_q)).sum())
            n_rows += len(rows)
    return {name: total / n_rows for name, total in sums.items()}


def through_codec(forward: Forward, codec_config: CodecConfig) -> dict[str, float]:
    """Errors and KL of decoded rows, and payload bytes a token."""
    table = CodeTable(make_code_table(map(Captured, forward.samples), len(forward.head_VD)))
    codec = LogitsCodec(forward.capture, codec_config, table)
    errors, kls, size = [], {"kl_1": [], "kl_3": []}, 0  # type: ignore[var-annotated]
    for sample in forward.samples:
        payload = codec.encode(sample)
        found = codec.decode(payload, sample.num_tokens)
        size += len(payload)
        errors.append(np.abs(found.logprobs.astype(np.float64) - sample.logprobs))
        for column, name in enumerate(kls):
            kls[name].append(bucket_kl(sample, found, TEMPERATURES[column], column))
    every = np.concatenate(errors)
    means = {name: float(np.concatenate(values).mean()) for name, values in kls.items()}
    return {"max": float(every.max()), "mean": float(every.mean()), **means, "bytes": size / len(every)}


def bucket_kl(true: LogitsSample, found: LogitsSample, temperature: float, column: int) -> np.ndarray:
    """KL(found ‖ true) over each row's entries and bucket, float64 [S]."""
    log_p, log_q = (
        sample.logprobs.astype(np.float64) / temperature - sample.log_partition[:, [column]] for sample in (true, found)
    )
    log_q -= np.log(np.maximum(1, np.exp(log_q).sum(axis=1, keepdims=True)))
    rest_p, rest_q = (np.clip(1 - np.exp(logs).sum(axis=1), 1e-12, None) for logs in (log_p, log_q))
    return np.sum(np.exp(log_q) * (log_q - log_p), axis=1) + rest_q * np.log(rest_q / rest_p)


if __name__ == "__main__":
    sys.exit(main())
