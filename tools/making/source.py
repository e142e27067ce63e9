"""A cache that another one is made of: complete, with all its files there in full."""

from typing import NamedTuple

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, ShardEntry, ShardIndex
from teacher_cache.shards import marks
from teacher_cache.shards.marks import check_sizes, files_beside_shards, up_to_date_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.table import listed, signals_of
from teacher_cache.shards.unlisted import file_sizes


class Source(NamedTuple):
    """Where it is, and its manifest with all lists."""

    storage: Storage
    manifest: Manifest


def open_complete(url: str) -> Source:
    """Raises UserError when the cache is not complete, CorruptCacheError when a file is missing or of a wrong size."""
    storage = Storage(url)
    manifest = listed(storage, up_to_date_manifest(storage))
    if not manifest.complete:
        raise UserError(
            f"{url}: the cache is not complete: {len(manifest.shards)} of {len(manifest.units)} shards are committed; "
            "finish the run, or make a cache of these shards first with `cache-tools subset`"
        )
    sizes = file_sizes(storage)
    for entry in manifest.shards:
        check_sizes(storage, entry, signals_of(manifest), sizes)
    for name, file in files_beside_shards(manifest):
        if sizes.get(name) != file.bytes:
            seen = f"{sizes[name]} bytes" if name in sizes else "the file is missing"
            raise CorruptCacheError(f"{storage.where(name)}: {seen}, the manifest says {file.bytes} bytes")
    return Source(storage, manifest)


def read_index(source: Source, entry: ShardEntry) -> ShardIndex:
    """A shard's index, checked, of the signals that the cache has: it may name others. Raises CorruptCacheError."""
    storage, manifest = source
    signals = signals_of(manifest)
    index = marks.read_index(storage, manifest, entry, signals)
    return index.model_copy(update={"signals": {signal: index.signals[signal] for signal in signals}})
