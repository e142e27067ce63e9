"""Parallel copying of files between storages, with checksums.

Files are hashed while they are copied, and one that differs from its manifest entry never appears at the target. Small
files are sent in one request; of larger ones, a part or two are in memory at a time.
"""

from collections.abc import Sequence
from io import RawIOBase

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.storage import Storage
from tools.checked_parts import Progress, checked

PARALLEL = 8
ONE_REQUEST = 1 << 25  # bytes of the largest file that is sent in one request
OWNER = "transfer-"  # of temporary files
File = tuple[str, FileEntry]


def bytes_of(files: Sequence[File]) -> int:
    """Total size of the files."""
    return sum(entry.bytes for _, entry in files)


def copy_files(source: Storage, target: Storage, files: Sequence[File], parallel: int, progress: Progress) -> None:
    """Copy files, ``parallel`` at a time, each atomically.

    Raises CorruptCacheError naming a source file that is missing or differs from its entry, UserError when one cannot
    be read or written.
    """
    for _ in map_ahead(lambda file: _copy_file(source, target, *file, progress), files, parallel):
        pass


def _copy_file(source: Storage, target: Storage, name: str, entry: FileEntry, progress: Progress) -> None:
    attempts = 1 if source.is_local else 2  # it may have been damaged in transit
    for attempt in range(1, attempts + 1):
        try:
            _send(source, target, name, entry, progress)
            return
        except CorruptCacheError:
            if attempt == attempts:
                raise


def _send(source: Storage, target: Storage, name: str, entry: FileEntry, progress: Progress) -> None:
    where = source.where(name)
    if target.is_local:
        with target.staged(name, OWNER) as path, open(path, "wb", buffering=0) as file:
            for part in checked(source.stream(name, entry.bytes), entry, where, progress):
                _write_all(file, part)
        return

    if entry.bytes > ONE_REQUEST:
        target.upload(name, entry.bytes, lambda: checked(source.parts(name, entry.bytes), entry, where, progress))
        return
    data, end = bytearray(entry.bytes), 0
    for part in checked(source.stream(name, entry.bytes), entry, where, progress):
        data[end : end + len(part)] = part
        end += len(part)
    target.put(name, data, sha256=entry.sha256)


def _write_all(file: RawIOBase, part: bytes | memoryview) -> None:
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]
