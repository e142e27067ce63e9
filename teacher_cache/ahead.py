"""A map over many items by a few threads: results in order, a bounded number of items ahead."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # each waits for a disk or a store most of the time
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS, ahead: int | None = None
) -> Generator[Result, None, None]:
    """``function`` of each item, in order; at most ``ahead`` results (default: two a thread) wait to be taken.

    Raises what ``function`` raises, in its place. Nothing is begun before the first result is asked for, nor after an
    error, nor once the generator is closed, which waits for the calls under way.
    """
    ahead = 2 * threads if ahead is None else ahead
    pending: deque[Future[Result]] = deque()
    over = threading.Event()

    def run(item: Item) -> Result:
        if over.is_set():
            raise CancelledError  # never seen: an earlier item has raised, or nobody takes results any more
        try:
            return function(item)
        except BaseException:
            over.set()
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
            over.set()
