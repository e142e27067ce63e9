"""What does the chunks of a curation: the interface that a pool of processes and a queue share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from teacher_cache.shards.storage import Storage

Task = tuple[Any, ...]  # arguments of a method of ``ChunkWorker``: the stage, the chunk, …
Fenced = Callable[[Storage], Storage]


class Hands(Protocol):
    """Does tasks, some of them alone."""

    def done(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """Do a method of ``ChunkWorker`` with each of these arguments, in any order; yields after each done here."""

    def done_by_one(self, action: str, tasks: Iterable[Task]) -> Iterator[None]:
        """The same in one process that ends afterwards, and gives back what it holds."""

    def alone(self) -> AbstractContextManager[Fenced]:
        """Within the block no other process is within it; what must be so is to be looked at again.

        Yields what makes storages stop writing once that is not certain.
        """
