"""Arms of the benchmark: readers in separate processes, with their rows on the local disk or in an object store.

From disk, a reader is opened once and everything is in the page cache. From a store, it is opened again for every
round, with nothing kept locally, so that an epoch includes opening.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.streaming.delivered_rows import Reference
from benchmarks.streaming.ours import Ours
from benchmarks.streaming.readers import STREAMERS
from benchmarks.streaming.row_storage import Remote, Streamer
from benchmarks.support.common import FOLDER
from benchmarks.support.environments import use

HERE = FOLDER / "streaming"
CACHE, ROWS, ENVIRONMENT, COPIES = HERE / "cache", HERE / "rows", HERE / "environment", HERE / "copies"
MAX_ERROR = 1 / 64  # nats; float16 rounding


@dataclass(frozen=True)
class Prepared:
    """The outcome of preparing a reader."""

    version: str = ""
    bytes_on_disk: int = 0
    error: float = 0.0  # largest error of a log-probability, nats
    problem: str | None = None  # why the reader cannot run


@dataclass(frozen=True)
class Round:
    """Measurements of one epoch."""

    seconds: float
    processor_seconds: float  # of the reader's process
    first_batch: float  # seconds to the first batch


@dataclass
class Arm:
    """A reader in its own process."""

    name: str
    rounds: list[Round] = field(default_factory=list)
    server_seconds: list[float] = field(default_factory=list)  # processor time of the store's server
    prepared: Prepared = field(default_factory=Prepared)

    def __post_init__(self) -> None:
        self.kind = STREAMERS[self.name]
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    @property
    def seconds(self) -> list[float]:
        """Seconds of every epoch."""
        return [each.seconds for each in self.rounds]

    def prepare(self, missing: str | None, store: tuple[str, str] | None = None) -> None:
        """Write the rows, or use those in ``store`` (URL and endpoint), and check that they are read back correctly.

        ``missing``: why third-party packages cannot be installed, or None.
        """
        if missing is not None and self.kind.foreign:
            self.prepared = Prepared(problem=f"not installable here: {missing}")
        else:
            try:
                self.prepared = self._run(prepare, self.name, store)
            except BrokenProcessPool:
                self.prepared = Prepared(problem="did not run: its process died")

    def round(self, number: int) -> None:
        """Read one epoch and record it."""
        self.rounds.append(self._run(read, number))

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()


_own: dict[str, Any] = {}  # state of an arm's process: class, store, and the reader opened from disk


def prepare(name: str, store: tuple[str, str] | None) -> Prepared:
    """Prepare a reader; runs in the arm's process, like ``read``. Failures are returned as problems, not raised."""
    kind = STREAMERS[name]
    if kind.foreign:
        use(ENVIRONMENT)
    try:
        reference = Reference.load(ROWS)
        streamer = kind(folder_of(kind))
        if store is None:
            streamer.store(reference)
        size = streamer.bytes_on_disk  # before the reader adds files of its own
        _own.update(kind=kind, store=store, streamer=streamer)
        with empty_folder() as copies:
            reader = opened(copies)
            error = reference.check(reader.epoch(0))
            release(reader)
        return Prepared(streamer.version, size, error, None if error <= MAX_ERROR else f"off by {error:.3g} nat")
    except Exception as error:
        return Prepared(problem=f"did not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def folder_of(kind: type[Streamer]) -> Path:
    """The reader's rows on the local disk."""
    return CACHE if issubclass(kind, Ours) else HERE / kind.__name__


def read(number: int) -> Round:
    """Read epoch ``number`` and measure it."""
    with empty_folder() as copies:
        started, processor, first = time.perf_counter(), time.process_time(), 0.0
        reader = opened(copies)
        for _ in reader.epoch(number):
            first = first or time.perf_counter() - started
        done = Round(time.perf_counter() - started, time.process_time() - processor, first)
        release(reader)
    return done


def opened(copies: Path) -> Streamer:
    """The reader opened from disk, or a new one on the store."""
    kind, store = _own["kind"], _own["store"]
    return _own["streamer"] if store is None else kind(folder_of(kind), Remote(store[0], store[1], copies))


def release(reader: Streamer) -> None:
    """Close a reader unless it is the one kept open."""
    if reader is not _own["streamer"]:
        reader.close()


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A temporary folder for local copies."""
    COPIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COPIES.resolve(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
