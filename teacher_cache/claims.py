"""Claim units for this worker: the one being scored, and the next one, being read."""

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, TypeVar

from schemas.errors import ConflictError
from teacher_cache.plan import wait_for_workers
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.lease import POLL, WHOLE, Held, Lease, acquire_part
from teacher_cache.shards.marks import mark_name, temporary_of
from teacher_cache.shards.storage import TEMPORARY_PREFIX, Storage
from teacher_cache.stop_request import StopRequest

RUNNING, GENERATING = "teacher-cache run", "teacher-cache generate"  # command names in leases
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


class Claims(Generic[Unit]):
    """Claims units in order; those held by another process are skipped and recorded in ``elsewhere``.

    A context manager that releases remaining leases at its end. A worker claims the next unit before it commits the
    current one, so it always holds a lease and no other process can acquire the whole place in between.
    """

    def __init__(self, storage: Storage, units: Sequence[Unit], command: str = RUNNING, queue: bool = False) -> None:
        """``queue``: whether ``next_or_wait`` comes back to the units of others."""
        self.elsewhere: dict[str, Held] = {}
        self._storage, self._command, self._queue = storage, command, queue
        self._units = {unit.name: unit for unit in units}
        self._left = [name for name in storage.names() if name.startswith(TEMPORARY_PREFIX)] if units else []
        self._held: dict[str, Lease] = {}
        self._done: list[str] = []
        self._claims = (claim for unit in units if (claim := self._claim(unit)) is not None)

    def next(self) -> Claim[Unit] | None:
        """Claim the next unit; None after the last."""
        return next(self._claims, None)

    def next_or_wait(self, stop: StopRequest) -> Claim[Unit] | None:
        """``next``; after the last unit of a queue, wait until those of others are committed, or free again.

        Call it with no uncommitted unit in hand, since others may be waiting for that.
        """
        claim = self.next()
        while claim is None and self._queue and self.elsewhere and not stop:
            for name in [*self.elsewhere]:
                claim = claim or self._claim(self._units[name])
            if claim is None and self.elsewhere:
                time.sleep(POLL)
        return claim

    def done(self, unit: Unit) -> None:
        """Release a committed unit, once another one is held."""
        self._done.append(unit.name)
        while self._done and len(self._held) > 1:
            self._held.pop(self._done.pop(0)).release()

    def _claim(self, unit: Unit) -> Claim[Unit] | None:
        """Claim a unit; None if it is committed, or another process has it."""
        if self._queue and self._storage.exists(mark_name(unit.name)):  # most are, by the others
            self.elsewhere.pop(unit.name, None)
            return None
        try:
            lease = acquire_part(self._storage, unit.name, self._command, _is_short)
        except Held as held:
            if held.name == WHOLE:
                raise
            if not self._queue:
                logger.warning("%s; leaving the unit to that process", held)
            self.elsewhere[unit.name] = held
            return None
        self.elsewhere.pop(unit.name, None)
        if self._storage.exists(mark_name(unit.name)):  # committed meanwhile
            lease.release()
            return None
        self._held[unit.name] = lease
        for name in temporary_of(self._left, unit.name):  # of killed workers, since this one holds the lease
            lease.storage.delete(name)
        return Claim(unit, lease)

    def __enter__(self) -> "Claims[Unit]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for lease in self._held.values():
            lease.release()

    def check_all_done(self, shards: Sequence[Named]) -> None:
        """Raise ConflictError if a unit left to another process is not among the committed ``shards``."""
        there = {entry.name for entry in shards}
        left = [name for name in self.elsewhere if name not in there]
        if left:
            raise ConflictError(
                f"{len(left)} units of this worker are held by another process and not committed yet: "
                f"{self.elsewhere[left[0]]}"
            )


def _is_short(holder: Holder | None) -> bool:
    """Wait policy: wait for a process that plans, not for one that works on the same unit."""
    return wait_for_workers(holder) and holder is not None and holder.command not in (RUNNING, GENERATING)
