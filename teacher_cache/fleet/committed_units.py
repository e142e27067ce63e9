"""How far a job is, by its commit marks: whoever works on it, and wherever."""

from typing import Any

from teacher_cache.generated.generated_place import GENERATED, committed_units, read_generated
from teacher_cache.shards.marks import committed, read_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage

THINGS = {"run": ("tokens", "tok/s"), "generate": ("replies", "replies/s")}  # by the part of the command


class CommittedUnits:
    """Units of a run or a generation, and how many tokens or replies are committed."""

    def __init__(self, storage: Storage, part: str) -> None:
        self._storage, self._part = storage, part
        self._plan: Any = None
        self.sizes: dict[str, int] = {}  # of all units; {}: not planned yet
        self.done: set[str] = set()

    def look(self) -> None:
        """Look again: a listing, and before that the plan, once there is one. Raises UserError."""
        if self._plan is None and not self._planned():
            return
        found = committed if self._part == "run" else committed_units
        self.done = set(found(self._storage, self._plan))

    def _planned(self) -> bool:
        if not self._storage.exists(MANIFEST if self._part == "run" else GENERATED):
            return False
        if self._part == "run":
            self._plan = with_lists(self._storage, read_manifest(self._storage))
            self.sizes = {unit.name: unit.tokens for unit in self._plan.units}
        else:
            self._plan = read_generated(self._storage)
            self.sizes = {unit.name: unit.replies for unit in self._plan.units}
        return True

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
