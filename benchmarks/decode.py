"""Decoding speed of a cache into padded batch arrays, in random and in sequential order, in one process.

``CacheReader.read_batches`` reads, verifies and decodes tokens and logits; the other layouts (see ``layouts``) hold the
same rows, verify nothing, and read no tokens. All read from the page cache into arrays of the same shapes. Rounds of
the layouts alternate. A round reads every sample ``PASSES`` times, after an untimed pass that resets processor caches
and heap. The best round is reported, because other programs on the machine can only slow a round down; medians are in
the raw figures.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.support.common import FOLDER, shared_cache
from benchmarks.support.layouts import ARROW, LAYOUTS, RAW, Layout, Rows
from benchmarks.support.results import Row, at_least, exit_status, write_results
from teacher_cache.shards.reader import DECODE_THREADS, CacheReader

ROUNDS = 15
PASSES = 3
BATCH = 8
OURS = "this cache"
MIN_SPEED, MIN_OF_ARROW, MIN_OF_SEQUENTIAL = 2.6, 1.5, 0.9
Way = Callable[[], None]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    cache, _ = shared_cache()
    reader = CacheReader(str(cache))
    samples = [Rows.of(reader.read_logits(number)) for number in range(len(reader))]
    shutil.rmtree(FOLDER / "layouts", ignore_errors=True)
    layouts = {name: kind(FOLDER / "layouts" / kind.__name__, samples) for name, kind in LAYOUTS.items()}
    for layout in layouts.values():
        check_equal(layout.read([1, 0]), samples)
    rng = np.random.default_rng(0)
    ways: dict[str, tuple[Way, Way]] = {OURS: ours(reader, rng)}
    ways |= {name: theirs(layout, len(reader), rng) for name, layout in layouts.items()}
    tokens = int(reader.num_tokens.sum())
    speeds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for _ in range(1 + ROUNDS):
        for name, orders in ways.items():
            for values, way in zip(speeds[name], orders, strict=True):
                way()
                started = time.perf_counter()
                for _ in range(PASSES):
                    way()
                values.append(PASSES * tokens / (time.perf_counter() - started) / 1e6)
    speeds = {name: (random[1:], in_order[1:]) for name, (random, in_order) in speeds.items()}  # the first warms up
    best = {name: (max(random), max(in_order)) for name, (random, in_order) in speeds.items()}
    rows = [
        at_least("this cache, random order: read, checked, decoded", best[OURS][0], "M tok/s", MIN_SPEED),
        at_least("… ÷ Arrow IPC + zstd, random order", best[OURS][0] / best[ARROW][0], "×", MIN_OF_ARROW),
        at_least("… ÷ in order", best[OURS][0] / best[OURS][1], "×", MIN_OF_SEQUENTIAL),
        Row("… ÷ the ceiling, memory-mapped raw arrays", best[OURS][0] / best[RAW][0], "×"),
        *(Row(f"{name}: random · in order", f"{one:.2f} · {two:.2f}", "M tok/s") for name, (one, two) in best.items()),
    ]
    raw = {
        "batch": BATCH,
        "rounds": ROUNDS,
        "passes": PASSES,
        "tokens": tokens,
        "samples": len(reader),
        "threads": DECODE_THREADS,
        "million_tokens_per_second": speeds,
        "medians": {name: [statistics.median(values) for values in orders] for name, orders in speeds.items()},
        "bytes_per_token": {name: layout.bytes_per_token for name, layout in layouts.items()},
    }
    title = f"Decode: batches of {BATCH} × 2,048 tokens, K = 64, one process, best of {ROUNDS} rounds"
    write_results("decode", title, rows, raw)
    return exit_status(rows)


def check_equal(found: Rows, samples: list[Rows]) -> None:
    """Raise RuntimeError unless a layout returns samples 1 and 0 as written, up to float16 rounding."""
    for r, sample in enumerate((samples[1], samples[0])):
        n = len(sample.ids)
        same = np.array_equal(found.ids[r, :n], sample.ids) and np.array_equal(found.scalars[r, :n], sample.scalars)
        if not same or np.abs(found.logprobs[r, :n] - sample.logprobs).max() > 1 / 64:
            raise RuntimeError("a layout returned other rows than were written")


def ours(reader: CacheReader, rng: np.random.Generator) -> tuple[Way, Way]:
    """Functions that read every sample once, in random and in sequential order."""

    def read(order: np.ndarray) -> None:
        for _ in reader.read_batches([[number] for number in batch] for batch in batches(order)):
            pass

    return lambda: read(rng.permutation(len(reader))), lambda: read(np.arange(len(reader)))


def theirs(layout: Layout, n_samples: int, rng: np.random.Generator) -> tuple[Way, Way]:
    """The same for another layout."""

    def random() -> None:
        for batch in batches(rng.permutation(n_samples)):
            layout.read(batch)

    def in_order() -> None:
        for _ in layout.sequential(BATCH):
            pass

    return random, in_order


def batches(order: np.ndarray) -> Iterator[list[int]]:
    """``order`` split into batches."""
    return (order[start : start + BATCH].tolist() for start in range(0, len(order), BATCH))


if __name__ == "__main__":
    sys.exit(main())
