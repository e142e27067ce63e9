"""The interface of an engine."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence

from teacher_cache.records import Captured, Request


class Engine(ABC):
    """A loaded teacher. Use as a context manager."""

    @abstractmethod
    def score(self, requests: Sequence[Request]) -> list[Captured]:
        """Capture every configured signal of each sequence. Returns one ``Captured`` per request, in order.

        Deterministic: the same requests in the same order give the same values, whatever was scored before.
        """

    def score_calls(self, calls: Iterable[Sequence[Request]]) -> Generator[list[Captured], None, None]:
        """Score one call after the other; yields the results of each, in order.

        An engine may work on the next call meanwhile, and share a forward pass between two: values are the same if the
        calls are. ``calls`` is read ahead by one.
        """
        for requests in calls:
            yield self.score(requests)

    @abstractmethod
    def close(self) -> None:
        """Release the model's memory."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
