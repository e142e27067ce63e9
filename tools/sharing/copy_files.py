"""Parallel copying of files between storages, with checksums.

Files are hashed while they are copied, and one that differs from its manifest entry never appears at the target. Small
files are sent in one request; of larger ones, a part or two are in memory at a time.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from io import RawIOBase
from typing import TypeVar

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage
from tools.side_by_side import side_by_side

PARALLEL = 8
ONE_REQUEST = 1 << 25  # bytes of the largest file that is sent in one request
OWNER = "transfer-"  # of temporary files
File = tuple[str, FileEntry]
Advance = Callable[[int, int], None]
Data = TypeVar("Data", bytes, bytes | memoryview)


def unseen(done: int, total: int) -> None:
    """A progress callback that does nothing."""


class Progress:
    """Thread-safe byte counter that reports to ``advance(bytes done, total)``."""

    def __init__(self, total: int, advance: Advance = unseen) -> None:
        self._done, self._total, self._advance, self._lock = 0, total, advance, threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Add bytes; negative for bytes that have to be sent again."""
        with self._lock:
            self._done += n_bytes
            self._advance(self._done, self._total)


def bytes_of(files: Sequence[File]) -> int:
    """Total size of the files."""
    return sum(entry.bytes for _, entry in files)


def copy_files(source: Storage, target: Storage, files: Sequence[File], parallel: int, progress: Progress) -> None:
    """Copy files, ``parallel`` at a time, each atomically.

    Raises CorruptCacheError naming a source file that is missing or differs from its entry, UserError when one cannot
    be read or written.
    """
    for _ in side_by_side(lambda file: _copy_file(source, target, *file, progress), files, parallel):
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


def checked(parts: Iterator[Data], entry: FileEntry, where: str, progress: Progress) -> Iterator[Data]:
    """Pass the parts of a file through; raises CorruptCacheError after the last one unless they match ``entry``."""
    found, n_bytes = hashlib.sha256(), 0
    try:
        for part in parts:
            found.update(part)
            n_bytes += len(part)
            progress.add(len(part))
            yield part
        if n_bytes != entry.bytes:
            raise CorruptCacheError(f"{where}: {n_bytes} bytes, the manifest says {entry.bytes}; it was not copied")
        if found.hexdigest() != entry.sha256:
            raise CorruptCacheError(
                f"{where}: sha256 is {found.hexdigest()}, the manifest says {entry.sha256}; it was not copied"
            )
    except BaseException:
        progress.add(-n_bytes)
        raise
