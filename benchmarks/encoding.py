"""Speed of the encoders, and what several threads gain: ``UnitWriter`` encodes a part's sequences side by side.

Synthetic rows: each shares most of its ids with an earlier row, as rows of a real teacher do (a real one of 49,152
tokens takes 81 bytes a row for ids of K = 64). One sequence's signals are one task: logits, 16 draws, and int8 hidden
states of three layers at every eighth row. Rounds of 1, 2 and 4 threads alternate in one process; the best round
counts, and only of those during which other programs left the processors alone. Payloads must be equal byte for byte.
"""

import sys
import time
from typing import Any

import numpy as np

from benchmarks.support.other_programs import watched
from benchmarks.support.results import Row, at_least, exit_status, write_results
from schemas.cache_config import CodecConfig, DrawsCapture, HiddenCapture, LogitsCapture
from teacher_cache.ahead import map_ahead
from teacher_cache.codec.permutation import CodeTable, build_code_table
from teacher_cache.process import usable_cores
from teacher_cache.records import LogitsSample
from teacher_cache.signals.draws.codec import DrawsCodec
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.hidden.codec import HiddenCodec
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.logits.codec import LogitsCodec

VOCABULARY, K, DRAWS, WIDTH = 49_152, 64, 16, 2048
SEQUENCES, TOKENS = 48, 512
EVERY = 8  # rows of hidden states
THREADS = (1, 2, 4)
MIN_ROUNDS, MAX_SECONDS = 8, 240
LOGITS = LogitsCapture(k=K, temperatures=[1.0, 3.0])
HIDDEN = HiddenCapture(layers=[0.25, 0.5, 0.75])
Task = tuple[LogitsSample, DrawsSample, HiddenSample]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    tasks = [make_task(np.random.default_rng(seed)) for seed in range(SEQUENCES)]
    counts = sum(np.bincount(task[0].ids.reshape(-1), minlength=VOCABULARY) for task in tasks)
    table, codec = CodeTable(build_code_table(np.asarray(counts))), CodecConfig()
    codecs = (
        LogitsCodec(LOGITS, codec, table),
        DrawsCodec(DrawsCapture(n=DRAWS), codec, table),
        HiddenCodec(HIDDEN, codec, len(HIDDEN.layers), WIDTH),
    )

    def encode(task: Task) -> list[bytes]:
        return [one.encode(record) for one, record in zip(codecs, task, strict=True)]  # type: ignore[attr-defined]

    wanted = [encode(task) for task in tasks]
    seconds: dict[int, list[float]] = {threads: [] for threads in THREADS}
    rounds, started = 0, time.perf_counter()
    while min(map(len, seconds.values())) < MIN_ROUNDS and time.perf_counter() - started < MAX_SECONDS:
        rounds += 1
        for threads in THREADS:
            with watched() as watch:
                found = list(map_ahead(encode, tasks, threads))
            if found != wanted:
                raise RuntimeError(f"payloads of {threads} threads differ from those of one")
            if watch.quiet:
                seconds[threads].append(watch.seconds)
    if not all(seconds.values()):
        print(f"no round of {rounds} was undisturbed by other programs; try again on a quiet machine", file=sys.stderr)
        return 1
    best = {threads: min(values) for threads, values in seconds.items()}
    n_rows = SEQUENCES * TOKENS
    rows = [
        at_least("encoding with 4 threads ÷ 1 thread", best[1] / best[4], "×", 1.7),
        Row("… with 2 threads ÷ 1 thread", best[1] / best[2], "×"),
        Row("one thread", n_rows / best[1], "rows/s"),
        Row("4 threads", n_rows / best[4], "rows/s"),
        *(
            Row(f"bytes a row: {name}", sum(len(payloads[i]) for payloads in wanted) / n_rows, "B")
            for i, name in enumerate(("logits", "draws", "hidden states"))
        ),
    ]
    raw = {"seconds": seconds, "rounds": rounds, "cores": usable_cores(), "sequences": SEQUENCES, "tokens": TOKENS}
    title = f"Encoding {SEQUENCES} × {TOKENS} rows on {usable_cores()} cores: K = {K}, {DRAWS} draws, hidden states"
    write_results("encoding", title, rows, raw)
    return exit_status(rows)


def make_task(rng: np.random.Generator) -> Task:
    """One sequence's signals."""
    ids_PK = np.empty((TOKENS, K), np.int32)
    common = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(common / common.sum())
    for t in range(TOKENS):
        frequent = np.searchsorted(cumulative, rng.random(K)).clip(max=VOCABULARY - 1)
        earlier = ids_PK[rng.integers(max(0, t - 16), t)][: K * 4 // 5] if t else frequent
        candidates = np.concatenate([earlier, frequent, rng.integers(0, VOCABULARY, 2 * K)])
        row = candidates[np.sort(np.unique(candidates, return_index=True)[1])][:K]
        ids_PK[t] = row[np.argsort(np.arange(K) + rng.normal(0, 2, K))]
    gaps_PK = rng.exponential(0.12, (TOKENS, K)) * np.where(np.arange(K) < 8, 6, 1)
    logprobs_PK = -np.cumsum(gaps_PK, axis=1)
    p_PK = np.exp(logprobs_PK)
    p_PK *= 0.95 / p_PK.sum(axis=1, keepdims=True)
    positions = np.arange(TOKENS, dtype=np.int32)
    next_logprob = np.where(positions == TOKENS - 1, np.nan, -rng.exponential(2, TOKENS))
    log_partition = np.stack([np.zeros(TOKENS), rng.normal(3, 1, TOKENS)], axis=1)
    logits = LogitsSample(
        num_tokens=TOKENS,
        positions=positions,
        counts=np.full(TOKENS, K, np.int32),
        ids=ids_PK,
        logprobs=np.log(p_PK).astype(np.float32),
        next_logprob=next_logprob.astype(np.float32),
        log_partition=log_partition.astype(np.float32),
    )
    return logits, make_draws(logits, p_PK, rng), make_hidden(positions[::EVERY], rng)


def make_draws(logits: LogitsSample, p_PK: np.ndarray, rng: np.random.Generator) -> DrawsSample:
    """Draws from the rows' stored entries."""
    cumulative_PK = np.cumsum(p_PK / p_PK.sum(axis=1, keepdims=True), axis=1)
    places_PM = (np.arange(DRAWS) + rng.random((TOKENS, DRAWS))) / DRAWS
    drawn_PM = (cumulative_PK[:, None] < places_PM[:, :, None]).sum(axis=2).clip(max=K - 1)
    ids_PM = np.take_along_axis(logits.ids, drawn_PM, axis=1)
    return DrawsSample(logits.positions, ids_PM[:, None], rng.exponential(2, (TOKENS, 1)).astype(np.float32))


def make_hidden(positions: np.ndarray, rng: np.random.Generator) -> HiddenSample:
    """Quantised states of a normal distribution."""
    import torch

    from teacher_cache.signals.hidden.capture import quantise, to_hidden_sample

    def layer() -> Any:
        return quantise(torch.from_numpy(rng.normal(0, 1, (len(positions), WIDTH)).astype(np.float32)), HIDDEN)

    return to_hidden_sample(positions, [layer() for _ in HIDDEN.layers])


if __name__ == "__main__":
    sys.exit(main())
