"""Memory and time of APC at long packed rows, against the same loss over all rows, keys and attention heads at once.

32 attention heads over 8 key-value heads of 128 channels, float32; 2,600 stored rows in a pack of 32,768 tokens, of one
sample and of 16; from q and k to the gradients with respect to them, which are included in the memory. *Plain* keeps
attention rows of all heads for the backward pass; it is measured where it fits, at an eighth of the length. Chunks are
those of CUDA. Every measurement runs in its own process, where malloc returns freed tensors to the system.
"""

import argparse
import os
import statistics
import sys
from typing import Any

from benchmarks.support.common import in_own_process
from benchmarks.support.results import at_most, exit_status, write_results

TOKENS, STORED_ROWS, SAMPLES = 32_768, 2_600, 16
HEADS, KEY_VALUE_HEADS, CHANNELS = 32, 8, 128
RANKS, KEYS = 3, 32
ARMS = {
    "one sample": (TOKENS, STORED_ROWS, 1, False),
    f"{SAMPLES} samples": (TOKENS, STORED_ROWS, SAMPLES, False),
    "short": (TOKENS // 8, STORED_ROWS // 8, 1, False),
    "short, plain": (TOKENS // 8, STORED_ROWS // 8, 1, True),
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_memory", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--repetitions", type=int, default=3, help="processes for each short arm (default: 3)")
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # read when a process starts
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for repetition in range(arguments.repetitions):
        for arm, shape in ARMS.items():
            if repetition == 0 or arm.startswith("short"):
                measured[arm].append(in_own_process(measure, *shape))
                print(arm, measured[arm][-1], flush=True)
    memory = {arm: max(run["bytes"] for run in runs) for arm, runs in measured.items()}
    seconds = {arm: statistics.median(run["seconds"] for run in runs) for arm, runs in measured.items()}
    short, plain = measured["short"][0], measured["short, plain"][0]
    worst = max(abs(short[name] / plain[name] - 1) for name in ("loss", "query_gradient", "key_gradient"))
    rows = [
        at_most(f"peak memory, one sample of {TOKENS:,} tokens", memory["one sample"] / 2**30, "GiB", 1),
        at_most(f"peak memory, {SAMPLES} samples in {TOKENS:,} tokens", memory[f"{SAMPLES} samples"] / 2**30, "GiB", 1),
        at_most("… at 4,096 tokens ÷ plain", memory["short"] / memory["short, plain"], "×", 1 / 4),
        at_most("time at 4,096 tokens ÷ plain", seconds["short"] / seconds["short, plain"], "×", 1),
        at_most("loss and norms of gradients at 4,096 tokens: largest relative difference", worst, "", 1e-5),
    ]
    title = f"APC: {STORED_ROWS:,} stored rows, {HEADS} attention heads, float32"
    write_results("attention_memory", title, rows, {"measured": measured})
    return exit_status(rows)


def measure(tokens: int, stored_rows: int, samples: int, plain: bool) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass over a pack of ``samples`` equally long samples."""
    import time

    import torch

    from benchmarks.support.peak_memory import PeakMemory
    from teacher_cache.query_key import QueryKey
    from trainer.losses import apc

    apc.CHUNK_WEIGHTS["cpu"] = apc.CHUNK_WEIGHTS["cuda"]
    torch.manual_seed(0)
    query = torch.randn(1, HEADS, tokens, CHANNELS).mul_(1.5).requires_grad_()
    key = torch.randn(1, KEY_VALUE_HEADS, tokens, CHANNELS).requires_grad_()
    attention = QueryKey(query, key, CHANNELS**-0.5, None)
    batch = packed_rows(tokens, stored_rows, samples)
    loss = _plain if plain else _loss()
    with PeakMemory() as peak:
        start = time.perf_counter()
        total = loss(attention, batch)
        total.backward()
        seconds = time.perf_counter() - start
    assert query.grad is not None
    assert key.grad is not None
    norms = {"query_gradient": query.grad.norm().item(), "key_gradient": key.grad.norm().item()}
    return {"seconds": seconds, "bytes": peak.bytes, "loss": total.item(), **norms}


def packed_rows(tokens: int, stored_rows: int, samples: int) -> dict[str, Any]:
    """The attention part of a batch of one packed row; stored rows are spread evenly, their weights fall by rank."""
    import torch

    column = torch.arange(stored_rows) * tokens // stored_rows
    sample = column * samples // tokens
    first = sample * tokens // samples
    own = column - first
    rank = torch.arange(KEYS)
    weights = rank.mul(-0.3).softmax(dim=0).mul(0.8).expand(stored_rows, RANKS, KEYS)
    keys = torch.maximum(rank, rank * (own[:, None] + 1) // KEYS)[:, None].expand(stored_rows, RANKS, KEYS)
    parts = {
        "batch_row": torch.zeros_like(column),
        "column": column,
        "first_column": first,
        "sample": sample,
        "weights": torch.where(keys <= own[:, None, None], weights, 0),
        "keys": first[:, None, None] + keys,
    }
    return {f"attention_{name}": part for name, part in parts.items()}


def _loss() -> Any:
    from schemas.cache_config import CaptureConfig
    from schemas.train_config import ApcConfig
    from trainer.losses.apc import Apc
    from trainer.student.recorder import Recorded

    apc = Apc(ApcConfig(), CaptureConfig.model_validate({"attention": {"heads": RANKS, "keys": KEYS}}))
    apc.flat, apc.layer = False, 1
    return lambda attention, batch: apc.total(Recorded(query_key={1: attention}), batch)


def _plain(attention: Any, batch: dict[str, Any]) -> Any:
    """One sample: attention rows of all heads at once, by autograd."""
    import torch

    from teacher_cache.signals.attention.capture import attention_scores
    from trainer.losses.apc import apc_per_row, most_focused, row_entropies

    column = batch["attention_column"]
    query_HND, key_GSD = attention.query_RHLD[0][:, column], attention.key_RGLD[0]
    later_NS = torch.arange(key_GSD.shape[1]) > column[:, None]
    scores_HNS = attention_scores(query_HND, key_GSD, attention.scaling, attention.softcap)
    log_probs_NHS = scores_HNS.masked_fill(later_NS, -torch.inf).log_softmax(dim=-1).transpose(0, 1)
    heads_R = most_focused(row_entropies(log_probs_NHS.exp()), torch.zeros_like(column), 1, RANKS)[0]
    return apc_per_row(batch["attention_weights"], batch["attention_keys"], log_probs_NHS[:, heads_R]).sum()


if __name__ == "__main__":
    sys.exit(main())
