"""``cache-tools prune``: remove the leftovers of killed runs and transfers from a cache."""

from schemas.errors import UserError
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import garbage, read_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import Storage


def prune(url: str, dry_run: bool = False) -> dict[str, int]:
    """Delete files named like a cache's but not in its manifest; returns name → bytes.

    Other files are never touched; with ``dry_run`` nothing is deleted. Raises UserError when there is no complete cache
    at ``url``: a run may still be writing an incomplete one.
    """
    storage = Storage(url)
    if dry_run:
        return _leftovers(storage)
    read_manifest(storage)  # raises before anything is written, even a lease
    with whole_place(storage, "cache-tools prune") as lease:
        leftovers = _leftovers(storage)
        for name in leftovers:
            lease.storage.delete(name)
    return leftovers


def _leftovers(storage: Storage) -> dict[str, int]:
    manifest = with_lists(storage, read_manifest(storage))
    if not manifest.complete:
        raise UserError(
            f"{storage.url}: the cache is not complete, and a run may be writing to it; finish it with `teacher-cache "
            "run`, which also removes leftovers"
        )
    sizes = storage.sizes()
    return {name: sizes[name] for name in garbage(sizes, manifest)}
