"""The units that a worker has for itself: one at a time is scored, the next one is read meanwhile."""

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

RUNNING = "teacher-cache run"  # as whose a lease is taken
logger = logging.getLogger(__name__)


class Claim(NamedTuple):
    """A unit without a commit mark that only this process writes, as long as it has the lease."""

    unit: Unit
    lease: Lease


class Claims:
    """Claims of units in order; those that another process has are left to it, and kept in ``elsewhere``.

    Use as a context manager: what is still held ends with it. A worker claims a unit before it commits the one before,
    and so has a lease from its first unit to its end: nobody takes the whole place in between.
    """

    def __init__(self, storage: Storage, plan: Manifest, units: Sequence[Unit]) -> None:
        self.elsewhere: dict[str, Held] = {}
        self.tokens = sum(unit.tokens for unit in units)
        self._storage, self._plan = storage, plan
        self._held: dict[str, Lease] = {}
        self._done: list[str] = []
        self._claims = self._claim_all(units)

    def next(self) -> Claim | None:
        """The next unit to be done, None after the last."""
        return next(self._claims, None)

    def done(self, unit: Unit) -> None:
        """Let go of a committed unit, once another one is held."""
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
                logger.warning("%s; it is left to that", held)
                self.elsewhere[unit.name] = held
                continue
            if self._storage.exists(mark_name(unit.name)):  # by now
                lease.release()
                continue
            self._held[unit.name] = lease
            for name in garbage(left, plan, unit.name):  # of killed workers: nobody else writes this unit now
                lease.storage.delete(name)
            yield Claim(unit, lease)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for lease in self._held.values():
            lease.release()

    def check_all_done(self, plan: Manifest) -> None:
        """Raise ConflictError when a unit that was left to another process is not in ``plan``."""
        there = {entry.name for entry in plan.shards}
        left = [name for name in self.elsewhere if name not in there]
        if left:
            raise ConflictError(
                f"{len(left)} units of this worker were left to another process that has them, and are not done yet: "
                f"{self.elsewhere[left[0]]}"
            )


def _is_short(holder: Holder | None) -> bool:
    """Whether one waits for a holder: for one that plans, not for one that scores the same unit."""
    return wait_for_workers(holder) and holder is not None and holder.command != RUNNING
