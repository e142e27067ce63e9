"""Link or copy a file between caches."""

from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage
from tools.checked_parts import Progress, checked


def share_file(source: Storage, source_name: str, target: Storage, target_name: str, entry: FileEntry) -> bool:
    """Hard-link the file, or copy it within the object store; where neither works, read and write it.

    Returns whether the content was read. It is then checked against ``entry``: raises CorruptCacheError when it
    differs, UserError when it cannot be read or written.
    """
    if target.link_or_copy(target_name, source, source_name):
        return False
    progress = Progress(entry.bytes)
    with target.staged(target_name) as path, path.open("wb") as file:
        for part in checked(source.stream(source_name, entry.bytes), entry, source.where(source_name), progress):
            file.write(part)
    return True
