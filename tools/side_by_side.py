"""An ordered parallel map over threads, with a bounded number of pending items."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # mostly waiting for a disk or an object store
Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` in the order of ``items``. An exception in a thread is raised here.

    After an exception, or once the generator is closed, no further item starts; running ones are waited for.
    """
    pending: deque[Future[Result]] = deque()
    stopped = threading.Event()

    def run(item: Item) -> Result:
        if stopped.is_set():
            raise CancelledError  # never seen by the caller: an earlier item has raised
        try:
            return function(item)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(run, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stopped.set()
