"""Work that threads do ahead of whoever takes its results, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``function`` of each item, in order, by threads that are at most ``threads`` + 1 items ahead.

    Raises what ``function`` raises, in its place. Nothing is begun before the first result is asked for, and nothing
    more after the iterator is closed.
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
