"""How far a job is, by its commit marks: whoever works on it, and wherever."""

from collections.abc import Callable, Collection
from typing import Any

from teacher_cache.shards.storage import Storage


class CommittedUnits:
    """Units of a job that is planned as a whole, and how many tokens or replies are committed."""

    def __init__(
        self,
        storage: Storage,
        manifest: str,
        read: Callable[[Storage], Any],
        committed: Callable[[Storage, Any], Collection[str]],
        size: Callable[[Any], int],
    ) -> None:
        """manifest: name of the file with the plan. read: gives the plan, whose units have names. size: of a unit."""
        self._storage, self._manifest, self._read, self._committed, self._size = (
            storage,
            manifest,
            read,
            committed,
            size,
        )
        self._plan: Any = None
        self.sizes: dict[str, int] = {}  # of all units; {}: not planned yet
        self.done: set[str] = set()

    def look(self) -> None:
        """Look again: a listing, and before that the plan, once there is one. Raises UserError."""
        if self._plan is None:
            if not self._storage.exists(self._manifest):
                return
            self._plan = self._read(self._storage)
            self.sizes = {unit.name: self._size(unit) for unit in self._plan.units}
        self.done = set(self._committed(self._storage, self._plan))

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
