"""The commands that a fleet can run, and how their units are counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.generate_config import GenerateConfig
from schemas.manifest import Manifest
from teacher_cache.fleet.committed_units import CommittedUnits
from teacher_cache.fleet.curated_chunks import CuratedChunks
from teacher_cache.generated.generated_place import GENERATED, committed_units, read_generated
from teacher_cache.shards.marks import committed, read_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage

FleetConfig = CacheConfig | GenerateConfig | CurateConfig
CONFIGS: dict[str, type[CacheConfig] | type[GenerateConfig] | type[CurateConfig]] = {
    "run": CacheConfig,
    "generate": GenerateConfig,
    "curate": CurateConfig,
}


class Units(Protocol):
    """Units of a job, as they are at the last look."""

    sizes: dict[str, int]  # of all units, by name; {}: not planned yet
    done: set[str]  # names of those that are committed

    def look(self) -> None:
        """Look again. Raises UserError."""

    @property
    def complete(self) -> bool:
        """Whether the job is done."""

    @property
    def total(self) -> int:
        """Size of all units."""

    @property
    def finished(self) -> int:
        """Size of those that are committed."""


@dataclass(frozen=True)
class FleetPart:
    """A kind of job."""

    things: str  # what its units consist of
    rate: str
    units: Callable[[Any], Units]  # of a configuration


def _units_of_run(config: CacheConfig) -> Units:
    def read(storage: Storage) -> Manifest:
        return with_lists(storage, read_manifest(storage))

    return CommittedUnits(Storage(config.output.path), MANIFEST, read, committed, lambda unit: unit.tokens)


def _units_of_generate(config: GenerateConfig) -> Units:
    storage = Storage(config.output.path)
    return CommittedUnits(storage, GENERATED, read_generated, committed_units, lambda unit: unit.replies)


PARTS = {  # by the name of the command
    "run": FleetPart("tokens", "tok/s", _units_of_run),
    "generate": FleetPart("replies", "replies/s", _units_of_generate),
    "curate": FleetPart("chunks", "chunks/s", CuratedChunks),
}
