"""Doing the same to many things, a few at a time, in order."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # each waits for a disk or a store most of the time
Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS
) -> Generator[Result, None, None]:
    """``function`` of each item, in order, by so many threads. What it raises is raised here.

    Nothing more is begun then, nor when the generator is closed, which waits for what is under way.
    """
    pending: deque[Future[Result]] = deque()
    over = threading.Event()

    def run(item: Item) -> Result:
        if over.is_set():
            raise CancelledError  # never seen: an item before this one has raised
        try:
            return function(item)
        except BaseException:
            over.set()
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
            over.set()
