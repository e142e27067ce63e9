"""Claim units for this worker: the one being scored, and the next one, being read."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from schemas.errors import ConflictError
from teacher_cache.plan import wait_for_workers
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.lease import WHOLE, Held, Lease, acquire_part
from teacher_cache.shards.marks import mark_name, temporary_of
from teacher_cache.shards.storage import TEMPORARY_PREFIX, Storage
from teacher_cache.stop_request import StopRequest

RUNNING, GENERATING, CURATING_QUEUE = "teacher-cache run", "teacher-cache generate", "teacher-cache curate --queue"
WORKERS = (RUNNING, GENERATING, CURATING_QUEUE)  # command names in leases on units
logger = logging.getLogger(__name__)


class Named(Protocol):
    """A unit of work; its commit mark has its name."""

    @property
    def name(self) -> str:
        """Name of the shard that it becomes."""


Unit = TypeVar("Unit", bound=Named)


class Claim(NamedTuple, Generic[Unit]):
    """An uncommitted unit that only this process may write, while it holds the lease."""

    unit: Unit
    lease: Lease


class Claims(ABC, Generic[Unit]):
    """Claims units of a place, one after the other; the order is the subclass's.

    A context manager that releases remaining leases at its end. The lease of a committed unit is released only once
    another one is held, so a worker always holds one and no other process can acquire the whole place in between.
    """

    def __init__(self, storage: Storage, command: str) -> None:
        self._storage, self._command = storage, command
        self._left: list[str] = []  # temporary files; in a store there are none
        if storage.is_local:
            self._left = [name for name in storage.names() if name.startswith(TEMPORARY_PREFIX)]
        self._lock = threading.Lock()  # units are claimed in one thread and done in another
        self._held: dict[str, Lease] = {}
        self._done: list[str] = []

    @abstractmethod
    def next(self) -> Claim[Unit] | None:
        """Claim the next unit; None after the last."""

    def next_or_wait(self, stop: StopRequest) -> Claim[Unit] | None:
        """``next``; a queue also waits for units of others. Call it with no uncommitted unit in hand."""
        return self.next()

    def done(self, unit: Unit) -> None:
        """Release a committed unit, once another one is held."""
        with self._lock:
            self._done.append(unit.name)
            self._release_done()

    def check_all_done(self, shards: Sequence[Named]) -> None:
        """Raise ConflictError if a unit was left to another process that is not among the committed ``shards``."""
        return

    def _release_done(self) -> None:
        while self._done and len(self._held) > 1:
            self._held.pop(self._done.pop(0)).release()

    def _begun(self, unit: Unit, lease: Lease) -> Claim[Unit] | None:
        """The claim on a unit whose lease this process holds; None, without the lease, if it is committed."""
        if self._storage.exists(mark_name(unit.name)):  # meanwhile
            lease.release()
            return None
        with self._lock:
            self._held[unit.name] = lease
            self._release_done()
        for name in temporary_of(self._left, unit.name):  # of killed workers, since this one holds the lease
            lease.storage.delete(name)
        return Claim(unit, lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for lease in self._held.values():
            lease.release()


class ShareClaims(Claims[Unit]):
    """Claims the units of a worker's share in order; those held by another process are left to it."""

    def __init__(self, storage: Storage, units: Sequence[Unit], command: str = RUNNING) -> None:
        super().__init__(storage, command)
        self.elsewhere: dict[str, Held] = {}  # units left to others
        self._units = iter(units)

    def next(self) -> Claim[Unit] | None:
        """Claim the next unit that no other process holds; None after the last."""
        for unit in self._units:
            try:
                lease = acquire_part(self._storage, unit.name, self._command, is_short)
            except Held as held:
                if held.name == WHOLE:
                    raise
                logger.warning("%s; leaving the unit to that process", held)
                self.elsewhere[unit.name] = held
                continue
            if (claim := self._begun(unit, lease)) is not None:
                return claim
        return None

    def check_all_done(self, shards: Sequence[Named]) -> None:
        """Raise ConflictError if a unit was left to another process that is not among the committed ``shards``."""
        there = {entry.name for entry in shards}
        left = [name for name in self.elsewhere if name not in there]
        if left:
            raise ConflictError(
                f"{len(left)} units of this worker are held by another process and not committed yet: "
                f"{self.elsewhere[left[0]]}"
            )


def is_short(holder: Holder | None) -> bool:
    """Wait policy: wait for a process that plans, not for one that works on the same unit."""
    return wait_for_workers(holder) and holder is not None and holder.command not in WORKERS
