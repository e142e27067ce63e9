"""Opening of a complete cache as the source of a derived one."""

from typing import NamedTuple

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, ShardEntry, ShardIndex
from teacher_cache.shards import marks
from teacher_cache.shards.marks import check_sizes, files_beside_shards, up_to_date_manifest
from teacher_cache.shards.shard_table import signals_of, with_lists
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.unlisted import file_sizes


class Source(NamedTuple):
    """A complete cache and its manifest, with all lists."""

    storage: Storage
    manifest: Manifest


def open_complete(url: str) -> Source:
    """Open a complete cache and check the sizes of its files.

    Raises UserError when it is not complete, CorruptCacheError when a file is missing or has the wrong size.
    """
    storage = Storage(url)
    manifest = with_lists(storage, up_to_date_manifest(storage))
    if not manifest.complete:
        raise UserError(
            f"{url}: the cache is not complete: {len(manifest.shards)} of {len(manifest.units)} shards are committed; "
            "finish the run, or first extract these shards with `cache-tools subset`"
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
    """A shard's checked index, reduced to the cache's signals (the file may name others). Raises CorruptCacheError."""
    storage, manifest = source
    signals = signals_of(manifest)
    index = marks.read_index(storage, manifest, entry, signals)
    return index.model_copy(update={"signals": {signal: index.signals[signal] for signal in signals}})
