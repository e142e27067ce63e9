"""What the job asks of an engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from teacher_cache.records import LogitsSample


class Engine(ABC):
    """A loaded teacher. Use as a context manager."""

    @abstractmethod
    def score(self, sequences: Sequence[np.ndarray]) -> list[LogitsSample]:
        """The teacher's next-token distributions along each sequence (integer [S]), in the order given.

        The same sequences in the same order give the same values, whatever was scored before.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
