"""Processes that do chunks; each ends when the process that started it does, however that ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from schemas.curate_config import CurateConfig
from schemas.errors import MachineError
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.hands import Fenced, Task
from teacher_cache.logs import configure_logging

_worker: ChunkWorker | None = None


class WorkerPool:
    """``n`` processes, started when first needed; with one, chunks are done by ``here``, in this process."""

    def __init__(self, n: int, here: ChunkWorker, config: CurateConfig, scratch: str, layers: tuple[str, ...]) -> None:
        self._n, self.here, self._arguments = n, here, (config, scratch, layers)
        self._pool: ProcessPoolExecutor | None = None

    def done(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """Do a method of ``ChunkWorker`` with each of these arguments, in any order; yields after each."""
        if self._n == 1:
            for task in tasks:
                getattr(self.here, action)(*task)
                yield
            return
        if self._pool is None:
            self._pool = _started(self._n, self._arguments)
        yield from _done(self._pool, action, tasks)

    def done_by_one(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """The same in one process that ends afterwards, and gives back what it holds; the others end before."""
        self.close()
        pool = _started(1, self._arguments)
        try:
            yield from _done(pool, action, tasks)
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def alone(self) -> Iterator[Fenced]:
        """The places are held for the whole curation."""
        yield lambda storage: storage

    def close(self) -> None:
        """End the processes once each has done the chunk in hand."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextmanager
def worker_pool(
    n: int, here: ChunkWorker, config: CurateConfig, scratch: str, layers: tuple[str, ...]
) -> Iterator[WorkerPool]:
    """A pool that is closed at the end."""
    pool = WorkerPool(n, here, config, scratch, layers)
    try:
        yield pool
    finally:
        pool.close()


def _started(n: int, arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _begin, arguments)


def _done(pool: ProcessPoolExecutor, action: str, tasks: Iterable[Task]) -> Iterator[None]:
    try:
        for future in as_completed([pool.submit(_do, action, task) for task in tasks]):
            future.result()
            yield
    except BrokenProcessPool:
        raise MachineError(
            "a worker process was killed, by the system if memory is short; run again, with fewer --workers"
        ) from None


def _begin(config: CurateConfig, scratch: str, layers: tuple[str, ...]) -> None:
    """In a worker: leave signals to the parent, and end with it."""
    global _worker
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    configure_logging(False)
    _worker = ChunkWorker(config, scratch, layers)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _do(action: str, task: Task) -> None:
    assert _worker is not None
    getattr(_worker, action)(*task)
