"""Having a file of one cache in another one, under any name: by the cheapest way there is."""

import hashlib

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage

BLOCK_BYTES = 1 << 24


def share_file(source: Storage, source_name: str, target: Storage, target_name: str, entry: FileEntry) -> bool:
    """Have ``source``'s file in ``target``: linked, or copied by the store; else its content is read and written.

    Returns whether the content was read, which is then checked against ``entry``: raises CorruptCacheError when it is
    something else, UserError when it cannot be read or written.
    """
    if target.take(target_name, source, source_name):
        return False
    digest = hashlib.sha256()
    with target.staged(target_name) as path, path.open("wb") as file:
        for start in range(0, entry.bytes, BLOCK_BYTES):
            block = source.read_range(source_name, start, min(BLOCK_BYTES, entry.bytes - start))
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != entry.sha256:
            raise CorruptCacheError(
                f"{source.where(source_name)}: sha256 is {digest.hexdigest()}, the manifest says {entry.sha256}; fetch "
                "the file again from where it came"
            )
    return True
