"""``cache-tools prune``: remove what killed runs and transfers left of files in a cache."""

from schemas.errors import UserError
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import garbage, read_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.table import with_lists


def prune(url: str, dry_run: bool = False) -> dict[str, int]:
    """Remove files that are a cache's by name but that its manifest does not account for; their bytes by name.

    Files that are not a cache's are never touched. With ``dry_run`` none is. Raises UserError when there is no complete
    cache at ``url``: a run may be writing an incomplete one.
    """
    storage = Storage(url)
    if dry_run:
        return _found(storage)
    read_manifest(storage)  # or nothing is written, not even a lease
    with whole_place(storage, "cache-tools prune") as lease:
        found = _found(storage)
        for name in found:
            lease.storage.delete(name)
    return found


def _found(storage: Storage) -> dict[str, int]:
    manifest = with_lists(storage, read_manifest(storage))
    if not manifest.complete:
        raise UserError(
            f"{storage.url}: the cache is not complete, and a run may be writing to it; let `teacher-cache run` finish "
            "it, which removes what killed runs left, too"
        )
    sizes = storage.sizes()
    return {name: sizes[name] for name in garbage(sizes, manifest)}
