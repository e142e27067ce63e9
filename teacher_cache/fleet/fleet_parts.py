"""The commands that a fleet can run, and how the units of those that are planned as a whole are counted."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.generate_config import GenerateConfig
from schemas.manifest import Manifest
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


@dataclass(frozen=True)
class FleetPart:
    """A kind of job. A plan has units with names."""

    things: str  # what its units consist of
    rate: str
    manifest: str  # name of the file with the plan
    read: Callable[[Storage], Any]  # the plan
    committed: Callable[[Storage, Any], Collection[str]]  # names of units with a commit mark
    size: Callable[[Any], int]  # of a unit, in these things


def _read_plan(storage: Storage) -> Manifest:
    return with_lists(storage, read_manifest(storage))


PARTS = {  # by the name of the command
    "run": FleetPart("tokens", "tok/s", MANIFEST, _read_plan, committed, lambda unit: unit.tokens),
    "generate": FleetPart(
        "replies",
        "replies/s",
        GENERATED,
        read_generated,
        committed_units,
        lambda unit: unit.replies,
    ),
}
