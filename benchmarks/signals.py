"""Exactness of stored hidden states and attention rows, and the cost of capturing them.

Exactness: vLLM in float32 with int8 and with bfloat16 storage, each in its own process, against an eager
``transformers`` forward pass, one sequence at a time. That each layer is the right one is shown by its neighbours: the
residual stream one layer earlier or later is far away. Quantisation error is measured on all channels, and without the
largest one percent of each row, which would hide the error of the rest.

Cost: one process and one vLLM engine; jobs that store only logits and jobs that store all signals alternate, timed from
a planned unit to its committed shard.
"""

import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import (
    FOLDER,
    as_config,
    cached,
    captured,
    digest,
    in_own_process,
    sequences_of,
    settings,
)
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from schemas.manifest import Signal
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.hidden.record import HiddenSample

LAYERS = [0.25, 0.5, 0.75]
HEADS, KEYS = 3, 32
LARGEST = 0.01  # share of channels excluded as largest
REPETITIONS = 3
SIGNALS: tuple[Signal, ...] = ("tokens", "logits", "hidden", "attention")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    stored = {dtype: cache_of(dtype) for dtype in ("int8", "bfloat16")}
    sequences = sequences_of(stored["int8"], limit=6)
    found = compare(stored, sequences)
    print("cost: logits only and all signals, by turns", flush=True)
    seconds = in_own_process(cost)
    logits_only, everything = (statistics.median(seconds[name]) for name in ("logits", "all"))

    hidden, attention = found["hidden"], found["attention"]
    rows = [
        at_least("hidden, bfloat16: lowest cosine", hidden["bfloat16"]["cosine"], "", 0.99999),
        at_most("hidden, int8: largest relative L2 error of a row", 100 * hidden["int8"]["error"], "%", 1),
        at_most("… without the largest 1 % of channels", 100 * hidden["int8"]["error_of_rest"], "%", 1),
        Row("… mean, all channels", 100 * hidden["int8"]["mean_error"], "%"),
        Row("… mean, without the largest 1 %", 100 * hidden["int8"]["mean_error_of_rest"], "%"),
        at_least("distance to the layer before or after, ÷ largest error", hidden["int8"]["neighbours"], "×", 5),
        at_most("attention: largest error of a stored weight", attention["weight"], "", 2e-3),
        at_most("attention: heads that differ", attention["heads"], "heads", 0),
        at_most("attention: largest error of a remainder", attention["remainder"], "", 2e-3),
        at_most("attention: rows whose stored weights exceed 1", attention["above_1"], "rows", 0),
        at_least("captured with all signals ÷ logits only", logits_only / everything, "×", 0.85),
        Row("hidden, int8, three layers", found["bytes"]["int8"]["hidden"], "B/token"),
        Row("hidden, bfloat16, three layers", found["bytes"]["bfloat16"]["hidden"], "B/token"),
        Row("attention", found["bytes"]["int8"]["attention"], "B/token"),
    ]
    raw = {"found": found, "seconds": seconds, "layers": LAYERS, "heads": HEADS, "keys": KEYS}
    raw |= {"sequences": digest(sequences), "tokens": sum(map(len, sequences))}
    write_results("signals", "Signals: SmolLM2-135M in float32, code, three layers and keyword rows", rows, raw)
    return exit_status(rows)


def tree_of(name: str, dtype: str, sequences: int) -> dict[str, Any]:
    """Settings of a cache with all signals over the beginnings of standard library modules, one sequence each."""
    tree = settings(FOLDER / name, modules=sequences, characters=3_500, max_tokens=256, max_batch_tokens=2048)
    tree["corpus"]["over_long"] = "truncate"
    tree["capture"]["hidden"] = {"layers": LAYERS, "dtype": dtype, "positions": "all"}
    tree["capture"]["attention"] = {"heads": HEADS, "keys": KEYS}
    return tree


def cache_of(dtype: str) -> CacheReader:
    """The cache with hidden states stored as ``dtype``."""
    tree = tree_of(f"signals-{dtype}", dtype, sequences=6)
    cached(FOLDER / f"signals-{dtype}", tree)
    return CacheReader(tree["output"]["path"], SIGNALS)


def compare(stored: dict[str, CacheReader], sequences: list[np.ndarray]) -> dict[str, Any]:
    """Errors of the stored signals against an eager forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        make_teacher(), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in stored}
    attention: list[dict[str, float]] = []
    for i, ids in enumerate(sequences):
        with torch.inference_mode():
            ids_1S = torch.from_numpy(ids)[None]
            output = model(ids_1S, output_hidden_states=True, output_attentions=True)
        states = [state[0].numpy() for state in output.hidden_states]
        for dtype, reader in stored.items():
            rows[dtype].append(hidden_errors(reader, reader.read_hidden(i), states))
        attention.append(attention_errors(stored["int8"].read_attention(i), output.attentions[-1][0].double().numpy()))
    return {
        "hidden": {
            dtype: {name: worst(name, [found[name] for found in parts]) for name in parts[0]}
            for dtype, parts in rows.items()
        },
        "attention": {name: max(found[name] for found in attention) for name in attention[0]},
        "bytes": {
            dtype: {name: size / reader.manifest.totals.tokens for name, size in reader.manifest.totals.bytes.items()}
            for dtype, reader in stored.items()
        },
    }


def worst(name: str, values: list[float]) -> float:
    """Aggregate over sequences: mean of means, minimum of figures that should be high, maximum of errors."""
    if name.startswith("mean"):
        return statistics.mean(values)
    return min(values) if name in ("cosine", "neighbours") else max(values)


def hidden_errors(reader: CacheReader, sample: HiddenSample, states: list[np.ndarray]) -> dict[str, float]:
    """Errors of one sequence's hidden states over all layers and rows."""
    from teacher_cache.signals.hidden.capture import to_floats

    capture: Any = reader.manifest.capture.hidden
    found_PCD = to_floats(sample, capture).double().numpy()
    errors, rests, cosines, neighbours = [], [], [], []
    for column, layer in enumerate(capture.layer_numbers(len(states) - 1)):
        found, wanted = found_PCD[:, column], states[layer][sample.positions].astype(np.float64)
        error = found - wanted
        n_largest = max(1, round(LARGEST * wanted.shape[1]))
        rest = np.argsort(-np.abs(wanted), axis=1)[:, n_largest:]
        errors.append(np.linalg.norm(error, axis=1) / np.linalg.norm(wanted, axis=1))
        of_rest = [np.linalg.norm(np.take_along_axis(part, rest, axis=1), axis=1) for part in (error, wanted)]
        rests.append(of_rest[0] / of_rest[1])
        products = (found * wanted).sum(axis=1)
        cosines.append(products / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1))
        for other in (layer - 1, layer + 1):
            step = states[other][sample.positions] - wanted
            neighbours.append(np.median(np.linalg.norm(step, axis=1) / np.linalg.norm(wanted, axis=1)))
    return {
        "error": float(np.max(errors)),
        "error_of_rest": float(np.max(rests)),
        "mean_error": float(np.mean(errors)),
        "mean_error_of_rest": float(np.mean(rests)),
        "cosine": float(np.min(cosines)),
        "neighbours": float(np.min(neighbours) / np.max(errors)),
    }


def attention_errors(sample: AttentionSample, weights_HSS: np.ndarray) -> dict[str, float]:
    """Errors of one sequence's attention rows; attention heads and weights are selected here independently."""
    rows_HPS = weights_HSS[:, sample.positions]
    entropy_H = -(rows_HPS * np.log(np.maximum(rows_HPS, 1e-30))).sum(axis=2).mean(axis=1)
    wanted_heads = np.argsort(entropy_H, kind="stable")[:HEADS]
    at_keys = np.take_along_axis(rows_HPS[sample.heads].transpose(1, 0, 2), sample.keys.astype(np.int64), axis=2)
    stored = sample.weights > 0
    largest = -np.sort(-rows_HPS[sample.heads].transpose(1, 0, 2), axis=2)[:, :, :KEYS]
    remainder = 1 - sample.weights.sum(axis=2, dtype=np.float64)
    wanted_remainder = 1 - np.where(stored, at_keys, 0).sum(axis=2)
    return {
        "weight": float(max(np.abs(at_keys - sample.weights)[stored].max(), np.abs(largest - sample.weights).max())),
        "heads": float((wanted_heads != sample.heads).sum()),
        "remainder": float(np.abs(remainder - wanted_remainder).max()),
        "above_1": float((remainder < -1e-6).sum()),
    }


def cost() -> dict[str, list[float]]:
    """Seconds from reading a unit to its commit mark, with logits only and with all signals."""
    from teacher_cache.engines import open_engine

    trees = {"all": tree_of("signals-cost", "int8", sequences=16)}
    trees["all"]["capture"]["hidden"]["positions"] = "loss_mask"
    only = {**trees["all"], "capture": {name: trees["all"]["capture"][name] for name in ("logits", "draws")}}
    only["output"] = {**only["output"], "path": str(FOLDER / "signals-cost/logits")}
    trees["logits"] = only
    seconds: dict[str, list[float]] = {"logits": [], "all": []}
    with open_engine(as_config(trees["all"])) as engine:
        for repetition in range(REPETITIONS + 1):
            for name in seconds:
                took = captured(engine, as_config(trees[name])).seconds
                if repetition:  # the first one warms up
                    seconds[name].append(took)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
