"""The files of a cache wherever it is; on a server without listings, those that its manifest accounts for."""

from concurrent.futures import ThreadPoolExecutor

from schemas.errors import CorruptCacheError
from teacher_cache.shards.marks import expected_names, read_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, Storage

REQUESTS = 16  # concurrent


def file_names(storage: Storage) -> list[str]:
    """Names of a cache's files, sorted; over plain HTTP none where there is no manifest."""
    if storage.can_list:
        return storage.names()
    if not storage.exists(MANIFEST):
        return []
    return sorted({MANIFEST} | expected_names(with_lists(storage, read_manifest(storage))))


def file_sizes(storage: Storage) -> dict[str, int]:
    """Size in bytes of each of these files; over plain HTTP what the server says, of those that it has."""
    if storage.can_list:
        return storage.sizes()

    def size(name: str) -> int | None:
        try:
            return storage.size(name)
        except CorruptCacheError:
            return None

    names = file_names(storage)
    with ThreadPoolExecutor(REQUESTS, "size") as pool:
        found = zip(names, pool.map(size, names), strict=True)
        return {name: size for name, size in found if size is not None}
