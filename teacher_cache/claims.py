"""Claim units for this worker: the one being scored, and the next one, being read."""

import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

from schemas.errors import ConflictError
from schemas.manifest import Manifest, Unit
from teacher_cache.plan import wait_for_workers
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.lease import WHOLE, Held, Lease, acquire_part
from teacher_cache.shards.marks import garbage, mark_name
from teacher_cache.shards.storage import TEMPORARY_PREFIX, Storage

RUNNING = "teacher-cache run"  # command name in the lease
logger = logging.getLogger(__name__)


class Claim(NamedTuple):
    """An uncommitted unit that only this process may write, while it holds the lease."""

    unit: Unit
    lease: Lease


class Claims:
    """Claims units in order; those held by another process are skipped and recorded in ``elsewhere``.

    A context manager that releases remaining leases at its end. A worker claims the next unit before it commits the
    current one, so it always holds a lease and no other process can acquire the whole place in between.
    """

    def __init__(self, storage: Storage, plan: Manifest, units: Sequence[Unit]) -> None:
        self.elsewhere: dict[str, Held] = {}
        self.tokens = sum(unit.tokens for unit in units)
        self._storage, self._plan = storage, plan
        self._held: dict[str, Lease] = {}
        self._done: list[str] = []
        self._claims = self._claim_all(units)

    def next(self) -> Claim | None:
        """Claim the next unit; None after the last."""
        return next(self._claims, None)

    def done(self, unit: Unit) -> None:
        """Release a committed unit, once another one is held."""
        self._done.append(unit.name)
        while self._done and len(self._held) > 1:
            self._held.pop(self._done.pop(0)).release()

    def _claim_all(self, units: Sequence[Unit]) -> Iterator[Claim]:
        plan = self._plan.model_copy(update={"complete": False})
        names = self._storage.names() if units else []
        left = [name for name in names if name.startswith(TEMPORARY_PREFIX)]
        for unit in units:
            try:
                lease = acquire_part(self._storage, unit.name, RUNNING, _is_short)
            except Held as held:
                if held.name == WHOLE:
                    raise
                logger.warning("%s; leaving the unit to that process", held)
                self.elsewhere[unit.name] = held
                continue
            if self._storage.exists(mark_name(unit.name)):  # committed meanwhile
                lease.release()
                continue
            self._held[unit.name] = lease
            for name in garbage(left, plan, unit.name):  # of killed workers, since this one holds the lease
                lease.storage.delete(name)
            yield Claim(unit, lease)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for lease in self._held.values():
            lease.release()

    def check_all_done(self, plan: Manifest) -> None:
        """Raise ConflictError if a unit left to another process is not among the shards of ``plan``."""
        there = {entry.name for entry in plan.shards}
        left = [name for name in self.elsewhere if name not in there]
        if left:
            raise ConflictError(
                f"{len(left)} units of this worker are held by another process and not committed yet: "
                f"{self.elsewhere[left[0]]}"
            )


def _is_short(holder: Holder | None) -> bool:
    """Wait policy: wait for a process that plans, not for one that scores the same unit."""
    return wait_for_workers(holder) and holder is not None and holder.command != RUNNING
