"""The files of a cache on a server without listings: those that its manifest accounts for."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from schemas.errors import CorruptCacheError

if TYPE_CHECKING:
    from teacher_cache.shards.storage import Storage

REQUESTS = 16  # concurrent


def names_by_manifest(storage: "Storage") -> list[str]:
    """Names of the manifest and the files that it lists; none if there is no manifest."""
    from teacher_cache.shards.marks import expected_names, read_manifest
    from teacher_cache.shards.shard_table import with_lists
    from teacher_cache.shards.storage import MANIFEST

    if not storage.exists(MANIFEST):
        return []
    return sorted({MANIFEST} | expected_names(with_lists(storage, read_manifest(storage))))


def sizes_by_manifest(storage: "Storage") -> dict[str, int]:
    """Size in bytes of each of these files, except missing ones."""

    def size(name: str) -> int | None:
        try:
            return storage.size(name)
        except CorruptCacheError:
            return None

    names = names_by_manifest(storage)
    with ThreadPoolExecutor(REQUESTS, "size") as pool:
        found = zip(names, pool.map(size, names), strict=True)
        return {name: size for name, size in found if size is not None}
