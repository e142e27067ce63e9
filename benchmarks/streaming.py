"""How fast does one process read cached rows as padded batches, here and with other streaming readers?

All hold the same rows, of some 400 sequences of 512 to 2,048 tokens, on a local disk, and everything is in the page
cache. Each reads in a process of its own, without worker processes, with the threads that it starts by itself. Each
first shows that it gives every row once and as it was written. Then rounds alternate, an epoch each: the best round
counts, because other programs on the machine only ever slow a round down. All rounds are in the raw figures.

This cache is read in a true random order and every checksum is verified. The others shuffle as they can and check
nothing. They read what is compressed, or arrays as they are, which take two to three times the disk.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from benchmarks.common import FOLDER, K, shared_cache
from benchmarks.foreign import REQUIREMENTS, make_environment, use
from benchmarks.results import Row, at_least, exit_status, write_results
from benchmarks.streaming_cache import longer_cache
from benchmarks.streaming_readers import BATCH, OURS, OURS_ONE_THREAD, PLAIN, STREAMERS, Ours, Streamer
from benchmarks.streaming_rows import Reference
from teacher_cache.shards.reader import DECODE_THREADS, CacheReader

HERE = FOLDER / "streaming"
CACHE, ROWS, ENVIRONMENT = HERE / "cache", HERE / "rows", HERE / "environment"
PER_SEQUENCE = 12
ROUNDS = 15
MAX_ERROR = 1 / 64  # nats, of float16
MIN_OF_OTHERS = 1


@dataclass(frozen=True)
class Prepared:
    """A reader that is ready, or why there is none."""

    version: str = ""
    bytes_on_disk: int = 0
    error: float = 0.0  # largest, of a log-probability
    problem: str | None = None


class Arm:
    """A reader in a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = STREAMERS[name]
        self.seconds: list[float] = []
        self.prepared = Prepared()
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def prepare(self, missing: str | None) -> None:
        """Write the rows and check what is read of them; ``missing``: why the foreign packages are not there."""
        if missing is not None and self.kind.foreign:
            self.prepared = Prepared(problem=f"not installable here: {missing}")
        else:
            try:
                self.prepared = self._run(prepare, self.name)
            except BrokenProcessPool:
                self.prepared = Prepared(problem="did not run: its process died")

    def round(self, number: int) -> None:
        """Read an epoch."""
        self.seconds.append(self._run(read, number))

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()


_ready: dict[str, Streamer] = {}  # in an arm's process: the one reader that it has


def prepare(name: str) -> Prepared:
    """Called in a process of its own, as is ``read``. What goes wrong is told, not raised."""
    kind = STREAMERS[name]
    if kind.foreign:
        use(ENVIRONMENT)
    try:
        streamer = kind(CACHE if issubclass(kind, Ours) else HERE / kind.__name__)
        reference = Reference.load(ROWS)
        streamer.store(reference)
        size = streamer.bytes_on_disk  # before a reader adds files of its own
        error = reference.check(streamer.epoch(0))
        _ready["streamer"] = streamer
        return Prepared(streamer.version, size, error, None if error <= MAX_ERROR else f"off by {error:.3g} nat")
    except Exception as error:
        return Prepared(problem=f"did not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def read(number: int) -> float:
    """Seconds of an epoch."""
    started = time.perf_counter()
    for _ in _ready["streamer"].epoch(number):
        pass
    return time.perf_counter() - started


def main() -> int:
    """Run the benchmark; returns the exit status."""
    tokens = make_rows()
    missing = make_environment(ENVIRONMENT, REQUIREMENTS / "streaming-bench.txt")
    arms = [Arm(name) for name in STREAMERS]
    for arm in arms:
        arm.prepare(missing)
    running = [arm for arm in arms if arm.prepared.problem is None]
    for number in range(1, ROUNDS + 2):
        for arm in running:
            arm.round(number)
    for arm in arms:
        arm.close()
        del arm.seconds[:1]  # warms up
    rows = as_rows(arms, tokens)
    title = f"Streaming: batches of {BATCH} sequences, K = {K}, one process, no workers, best of {ROUNDS} rounds"
    write_results("streaming", title, rows, raw_figures(arms, tokens))
    return exit_status(rows)


def make_rows() -> int:
    """Write the cache and the reference unless they are there; returns how many tokens they are of."""
    longer_cache(shared_cache()[0], CACHE, PER_SEQUENCE)
    reader = CacheReader(str(CACHE))
    Reference.save(ROWS, reader)
    return int(reader.num_tokens.sum())


def as_rows(arms: list[Arm], tokens: int) -> list[Row]:
    """Readers that did not run have no part in the bars."""
    speeds = {arm.name: tokens / min(arm.seconds) / 1e6 for arm in arms if arm.seconds}
    if OURS not in speeds:
        raise RuntimeError(f"{OURS}: {arms[0].prepared.problem}")
    others = {name: speed for name, speed in speeds.items() if name not in (OURS, OURS_ONE_THREAD)}
    compressed = [speed for name, speed in others.items() if not name.endswith(PLAIN)]
    rows = [
        at_least(f"{OURS} ÷ the fastest other that compresses", speeds[OURS] / max(compressed), "×", MIN_OF_OTHERS),
        at_least(
            f"… ÷ the fastest of all, uncompressed {PLAIN} too", speeds[OURS] / max(others.values()), "×", MIN_OF_OTHERS
        ),
    ]
    for arm in arms:
        checks = "all checksums verified" if issubclass(arm.kind, Ours) else "checks nothing"
        what = f"{arm.name}: {arm.kind.shuffle}; {checks}"
        if arm.prepared.problem is not None:
            rows.append(Row(what, arm.prepared.problem))
            continue
        speed, size = speeds[arm.name], arm.prepared.bytes_on_disk / tokens
        value = f"{speed:.2f} · {speeds[OURS] / speed:.2f} · {size:.0f}"
        rows.append(Row(what, value, f"M tok/s · {OURS} ÷ it · B/token"))
    return rows


def raw_figures(arms: list[Arm], tokens: int) -> dict[str, Any]:
    """Everything measured."""
    return {
        "batch": BATCH,
        "rounds": ROUNDS,
        "tokens": tokens,
        "threads": DECODE_THREADS,
        "packages": {arm.kind.package: arm.prepared.version for arm in arms if arm.prepared.version},
        "seconds": {arm.name: arm.seconds for arm in arms if arm.seconds},
        "median_million_tokens_per_second": {
            arm.name: tokens / statistics.median(arm.seconds) / 1e6 for arm in arms if arm.seconds
        },
        "largest_error": {arm.name: arm.prepared.error for arm in arms if arm.seconds},
        "problems": {arm.name: arm.prepared.problem for arm in arms if arm.prepared.problem},
    }


if __name__ == "__main__":
    sys.exit(main())
