"""How far a job is, by its commit marks: whoever works on it, and wherever."""

from typing import Any

from teacher_cache.fleet.fleet_parts import FleetPart
from teacher_cache.shards.storage import Storage


class CommittedUnits:
    """Units of a job, and how many tokens or replies are committed."""

    def __init__(self, storage: Storage, part: FleetPart) -> None:
        self._storage, self._part = storage, part
        self._plan: Any = None
        self.sizes: dict[str, int] = {}  # of all units; {}: not planned yet
        self.done: set[str] = set()

    def look(self) -> None:
        """Look again: a listing, and before that the plan, once there is one. Raises UserError."""
        if self._plan is None:
            if not self._storage.exists(self._part.manifest):
                return
            self._plan = self._part.read(self._storage)
            self.sizes = {unit.name: self._part.size(unit) for unit in self._plan.units}
        self.done = set(self._part.committed(self._storage, self._plan))

    @property
    def complete(self) -> bool:
        """Whether all units are committed."""
        return self._plan is not None and len(self.done) == len(self.sizes)

    @property
    def total(self) -> int:
        """Tokens, or replies, of all units."""
        return sum(self.sizes.values())

    @property
    def finished(self) -> int:
        """Those that are committed."""
        return sum(self.sizes[name] for name in self.done)
