"""An ordered parallel map over threads, with a bounded number of pending items."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # mostly waiting for a disk or an object store
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS, ahead: int | None = None
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` in the order of ``items``. An exception in a thread is raised here, in its place.

    At most ``ahead`` results (default: two per thread) are pending. No call starts before a result is requested,
    nor after an exception or once the generator is closed; running calls are waited for.
    """
    ahead = 2 * threads if ahead is None else ahead
    pending: deque[Future[Result]] = deque()
    stopped = threading.Event()

    def run(item: Item) -> Result:
        if stopped.is_set():
            raise CancelledError  # never seen by the caller: an earlier item has raised, or it takes no more
        try:
            return function(item)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(run, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stopped.set()
