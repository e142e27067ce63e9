"""What the job asks of an engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from teacher_cache.records import Captured, Request


class Engine(ABC):
    """A loaded teacher. Use as a context manager."""

    @abstractmethod
    def score(self, requests: Sequence[Request]) -> list[Captured]:
        """What the teacher says along each sequence, in the order given: every signal of the configuration.

        The same requests in the same order give the same values, whatever was scored before.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
