"""Claim units from a queue that any number of workers share: whatever is free, and what others leave undone."""

import random
import time
from collections.abc import Callable, Sequence

from teacher_cache.claims import RUNNING, Claim, Claims, Unit, is_short
from teacher_cache.queue_policy import LOOKS, MISSES, claim_classes, pause
from teacher_cache.shards.lease import POLL, PartAttempts, part_name
from teacher_cache.shards.marks import mark_name
from teacher_cache.shards.storage import Storage
from teacher_cache.stop_request import StopRequest


class QueueClaims(Claims[Unit]):
    """Claims units in the order of ``queue_policy``, without waiting for their holders.

    ``_contested`` are those that another process held when this one last looked; all others that are not known to be
    committed are in ``_free``, ``_classes`` or ``_passed_over``.
    """

    def __init__(
        self, storage: Storage, units: Sequence[Unit], size: Callable[[Unit], int], command: str = RUNNING
    ) -> None:
        """``size``: estimate of a unit's cost, in any measure."""
        super().__init__(storage, command)
        self._rng = random.Random()
        self._size = size
        self._classes: list[list[Unit]] = []  # those not begun yet, the largest last
        self._free: list[Unit] = []  # of the class at hand, the next one last
        self._passed_over: list[Unit] = []
        self._sort(units)
        self._contested: dict[str, tuple[Unit, PartAttempts]] = {}

    def next(self) -> Claim[Unit] | None:
        """Claim the next unit that seems free; None if there is none."""
        missed = 0
        while True:
            if self._free and missed < MISSES:
                if (claim := self._claim(self._free.pop())) is not None:
                    return claim
                missed += 1
                continue
            self._passed_over += self._free
            self._free, missed = [], 0
            if self._classes:
                self._free = self._classes.pop()
            elif self._passed_over:
                self._look()
            else:
                return None

    def _sort(self, units: Sequence[Unit]) -> None:
        found = claim_classes([self._size(unit) for unit in units], self._rng)
        self._classes = [[units[position] for position in positions] for positions in reversed(found)]

    def next_or_wait(self, stop: StopRequest) -> Claim[Unit] | None:
        """``next``; then wait until the units of others are committed, or free again.

        Call it with no uncommitted unit in hand, since others may be waiting for that.
        """
        number = 0
        while (claim := self.next() or self._contested_one()) is None and self._contested and not stop:
            until = time.monotonic() + pause(number, self._rng)
            while time.monotonic() < until and not stop:
                time.sleep(POLL / 5)
            number += 1
        return claim

    def _contested_one(self) -> Claim[Unit] | None:
        """Look at units of others, until one is free or LOOKS are held: the claim on it."""
        names, held = [*self._contested], 0
        self._rng.shuffle(names)
        for name in names:
            if (claim := self._claim(self._contested[name][0])) is not None:
                return claim
            held += name in self._contested
            if held == LOOKS:
                break
        return None

    def _claim(self, unit: Unit) -> Claim[Unit] | None:
        """Claim a unit; None if it is committed, or another process has it."""
        if self._storage.exists(mark_name(unit.name)):
            self._contested.pop(unit.name, None)
            return None
        new = PartAttempts(self._storage, unit.name, self._command, is_short)
        lease = self._contested.setdefault(unit.name, (unit, new))[1].attempt()
        if lease is None:
            return None
        self._contested.pop(unit.name)
        return self._begun(unit, lease)

    def _look(self) -> None:
        """Sort those passed over that are neither committed nor held by now."""
        present = self._storage.present()
        left = [unit for unit in self._passed_over if mark_name(unit.name) not in present]
        self._passed_over = []
        self._sort([unit for unit in left if part_name(unit.name) not in present])
        for unit in left:
            if part_name(unit.name) in present:
                attempts = PartAttempts(self._storage, unit.name, self._command, is_short)
                self._contested[unit.name] = (unit, attempts)
        for name in [name for name in self._contested if mark_name(name) in present]:
            del self._contested[name]
