"""Having a file of one cache in another one, under any name: by the cheapest way there is."""

from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage
from tools.checked_parts import Progress, checked


def share_file(source: Storage, source_name: str, target: Storage, target_name: str, entry: FileEntry) -> bool:
    """Have ``source``'s file in ``target``: linked, or copied by the store; else its content is read and written.

    Returns whether the content was read, which is then checked against ``entry``: raises CorruptCacheError when it is
    something else, UserError when it cannot be read or written.
    """
    if target.take(target_name, source, source_name):
        return False
    progress = Progress(entry.bytes)
    with target.staged(target_name) as path, path.open("wb") as file:
        for part in checked(source.stream(source_name, entry.bytes), entry, source.where(source_name), progress):
            file.write(part)
    return True
