"""The files of a cache on a server that lists none: those its manifest accounts for, and no others."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from schemas.errors import CorruptCacheError

if TYPE_CHECKING:
    from teacher_cache.shards.storage import Storage

REQUESTS = 16  # at a time


def names_by_manifest(storage: "Storage") -> list[str]:
    """Names of the manifest, and of the files that it lists; none where there is no manifest."""
    from teacher_cache.shards.marks import expected_names, read_manifest
    from teacher_cache.shards.storage import MANIFEST
    from teacher_cache.shards.table import with_lists

    if not storage.exists(MANIFEST):
        return []
    return sorted({MANIFEST} | expected_names(with_lists(storage, read_manifest(storage))))


def sizes_by_manifest(storage: "Storage") -> dict[str, int]:
    """What the server says about each of these files; what is missing is left out."""

    def size(name: str) -> int | None:
        try:
            return storage.size(name)
        except CorruptCacheError:
            return None

    names = names_by_manifest(storage)
    with ThreadPoolExecutor(REQUESTS, "size") as pool:
        found = zip(names, pool.map(size, names), strict=True)
        return {name: size for name, size in found if size is not None}
