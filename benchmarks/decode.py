"""How fast does a cache decode into padded batch arrays, in random order, in one process?

``CacheReader.read_rows`` reads, checks and decodes; the yardstick gathers the same samples from memory-mapped raw
numpy arrays (u32 ids, f32 log-probabilities, …) into arrays of the same shapes. Both read from the page cache. Rounds
of the two alternate and every round reads every sample once; the best round of each counts, because other programs on
the machine only ever slow a round down. Medians are in the raw figures.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from benchmarks.common import FOLDER, shared_cache
from benchmarks.results import Row, at_least, exit_status, write_results
from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import DECODE_THREADS, CacheReader

ROUNDS = 60
BATCH = 32
BAR = 2e6
Read = Callable[[Sequence[Sequence[int]]], RowBatch]


class RawArrays:
    """The cache's samples as memory-mapped arrays, one file a field."""

    def __init__(self, reader: CacheReader, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lengths = reader.num_tokens
        self._first = np.concatenate([[0], np.cumsum(reader.num_tokens)])
        whole = reader.read_rows([range(len(reader))])
        columns = {
            "input_ids": whole.input_ids[0].astype(np.uint32),
            "loss_mask": whole.loss_mask[0],
            "ids": whole.ids[0].astype(np.uint32),
            "logprobs": whole.logprobs[0],
            "next_logprob": whole.next_logprob[0],
            "log_partition": whole.log_partition[0],
        }
        self.bytes = sum(array.nbytes for array in columns.values())
        self._columns = {}
        for name, array in columns.items():
            np.save(folder / f"{name}.npy", array)
            self._columns[name] = np.load(folder / f"{name}.npy", mmap_mode="r")

    def read_rows(self, rows: Sequence[Sequence[int]]) -> RowBatch:
        """The same batch as ``CacheReader.read_rows`` for rows of one sample each."""
        longest = int(max(self._lengths[row[0]] for row in rows))
        shape = (len(rows), longest)
        k, t = self._columns["ids"].shape[1], self._columns["log_partition"].shape[1]
        batch = RowBatch(
            input_ids=np.zeros(shape, np.int64),
            position_ids=np.zeros(shape, np.int64),
            attention_mask=np.zeros(shape, bool),
            loss_mask=np.zeros(shape, bool),
            ids=np.empty((*shape, k), np.int32),
            logprobs=np.empty((*shape, k), np.float32),
            next_logprob=np.empty(shape, np.float32),
            log_partition=np.empty((*shape, t), np.float32),
        )
        for r, (position,) in enumerate(rows):
            start, stop = self._first[position], self._first[position + 1]
            n = stop - start
            for name, column in self._columns.items():
                getattr(batch, name)[r, :n] = column[start:stop]
            batch.position_ids[r, :n] = np.arange(n)
            batch.attention_mask[r, :n] = True
            for array, padding in ((batch.ids, 0), (batch.logprobs, -np.inf), (batch.next_logprob, np.nan)):
                array[r, n:] = padding
            batch.log_partition[r, n:] = 0
        return batch


def main() -> int:
    """Run the benchmark; returns the exit status."""
    cache, _ = shared_cache()
    reader = CacheReader(str(cache))
    raw_arrays = RawArrays(reader, FOLDER / "raw")
    rng = np.random.default_rng(0)
    check_equal(reader.read_rows([[0], [1]]), raw_arrays.read_rows([[0], [1]]))
    speeds: dict[str, list[float]] = {"cache": [], "raw": []}
    for _ in range(ROUNDS + 1):
        order = rng.permutation(len(reader))
        for name, read in (("cache", reader.read_rows), ("raw", raw_arrays.read_rows)):
            speeds[name].append(tokens_per_second(read, order, reader.num_tokens))
    speeds = {name: values[1:] for name, values in speeds.items()}  # the first round warms up
    best = {name: max(values) for name, values in speeds.items()}
    tokens = int(reader.num_tokens.sum())
    rows = [
        at_least("decoded and checked into batch arrays", best["cache"] / 1e6, "M tok/s", BAR / 1e6),
        Row("the same batches from memory-mapped raw arrays", best["raw"] / 1e6, "M tok/s"),
        Row("ratio", best["cache"] / best["raw"], "× raw"),
        Row("raw arrays against the cache's tars, on disk", raw_arrays.bytes / cache_bytes(reader), "× larger"),
    ]
    raw = {
        "batch": BATCH,
        "rounds": ROUNDS,
        "tokens": tokens,
        "samples": len(reader),
        "threads": DECODE_THREADS,
        "tokens_per_second": speeds,
        "median_tokens_per_second": {name: statistics.median(values) for name, values in speeds.items()},
    }
    title = f"Decode: random batches of {BATCH} × 512 tokens, K = 64, one process, best of {ROUNDS} rounds"
    write_results("decode", title, rows, raw)
    return exit_status(rows)


def tokens_per_second(read: Read, order: np.ndarray, num_tokens: np.ndarray) -> float:
    """Speed of one pass over the samples in ``order``."""
    batches = [[[int(i)] for i in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
    start = time.perf_counter()
    for batch in batches:
        read(batch)
    return float(num_tokens[order].sum() / (time.perf_counter() - start))


def cache_bytes(reader: CacheReader) -> int:
    """Bytes of the logits tars and the index: what the raw arrays stand for."""
    totals = reader.manifest.totals
    return totals.bytes["logits"] + totals.index_bytes


def check_equal(left: RowBatch, right: RowBatch) -> None:
    """Both ways of reading must give the same batch."""
    for field in fields(RowBatch):
        if getattr(left, field.name) is None:
            continue  # no such signal
        if not np.array_equal(getattr(left, field.name), getattr(right, field.name), equal_nan=field.name != "ids"):
            raise RuntimeError(f"{field.name} differs between the cache and the raw arrays")


if __name__ == "__main__":
    sys.exit(main())
