"""Ordered parallel map with bounded read-ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed by threads at most ``threads`` + 1 items ahead.

    Re-raises an exception of ``function`` in place of its result. Starts with the first ``next`` and stops when the
    iterator is closed.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
