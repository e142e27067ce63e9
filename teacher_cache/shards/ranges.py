"""Byte ranges of a cache's files: from open local files, from local copies of remote files, or one request each."""

import hashlib
import os
import resource
import threading
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from typing import ClassVar, NamedTuple
from weakref import WeakSet

from schemas.errors import CorruptCacheError, UserError
from schemas.failures import failure
from schemas.manifest import FileEntry
from teacher_cache.shards.copies import LocalCopies
from teacher_cache.shards.storage import Storage

MAX_OPEN_FILES = 128  # per cache
SHARE_OF_HANDLES = 3  # all caches of a process together use at most one in this many of its file handles
LEAST_OPEN_FILES = 2  # per cache


class _Open(NamedTuple):
    """An open file, closed once nothing references it."""

    file: FileIO
    descriptor: int
    size: int  # committed files never change


class FileRanges:
    """Reads byte ranges of one cache's files. Threads may share it; processes may not."""

    _all: ClassVar["WeakSet[FileRanges]"] = WeakSet()  # of this process

    def __init__(self, storage: Storage, copies: tuple[str, int] | None) -> None:
        """``copies``: folder for local copies of a remote cache's files, and their size limit in bytes."""
        self._storage = storage
        self._files: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._sha256: dict[str, tuple[tuple[int, ...], str]] = {}  # by name: identity and sha256 of files read in full
        self._checking = threading.Lock()
        self._all.add(self)
        self._copies = None if copies is None or storage.is_local else LocalCopies(storage, *copies)

    @property
    def keeps_copies(self) -> bool:
        """Whether files are copied to a local folder."""
        return self._copies is not None

    def read(self, name: str, entry: FileEntry, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` of a file; fewer at its end.

        Raises CorruptCacheError when the file is missing, or a local copy does not match ``entry``; UserError when the
        store cannot be read.
        """
        return self.opened(name, entry)(offset, size)

    def opened(self, name: str, entry: FileEntry, whole: bool = False) -> Callable[[int, int], bytes]:
        """``read`` bound to one file, for many ranges; ``whole``: first verify the sha256 of the whole file, once.

        Raises UserError for ``whole`` files in a store: what it sends later may differ from what was verified.
        """
        if self._copies is not None:
            if whole:
                self._copies.check_once(name, entry)
            return partial(self._copies.read, name, entry)
        if not self._storage.is_local:
            if whole:
                raise UserError(
                    f"{self._storage.where(name)}: format 1.0 has no per-sample digests, so reads from a store cannot "
                    "be verified against the required digest or signature; set data.local_copies, pull the cache "
                    "first, or `cache-tools repack` it"
                )
            return partial(self._storage.read_range, name)
        found = self._files.get(name) or self._file(name)
        if whole:
            self._check_whole(name, entry, found.descriptor)
        return partial(self._pread, name, found)  # keeps the file open if another thread evicts it

    def _pread(self, name: str, found: "_Open", offset: int, size: int) -> bytes:
        if size > found.size - offset:  # allocate nothing for a false size
            size = max(0, found.size - offset)
        try:
            return os.pread(found.descriptor, size, offset)
        except OSError as error:
            raise failure(error, f"{self._storage.where(name)}: cannot be read") from None

    def _check_whole(self, name: str, entry: FileEntry, descriptor: int) -> None:
        """Raise CorruptCacheError unless an open file matches ``entry``; rehashes it if it was modified."""
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        with self._checking:
            before, found = self._sha256.get(name, ((), ""))
            if before != identity:
                try:
                    with open(descriptor, "rb", buffering=0, closefd=False) as file:
                        file.seek(0)
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError as error:
                    raise failure(error, f"{self._storage.where(name)}: cannot be read") from None
                self._sha256[name] = identity, found
        if found != entry.sha256:
            raise CorruptCacheError(
                f"{self._storage.where(name)}: its sha256 is {found}, the manifest says {entry.sha256}; restore the "
                "file from its origin"
            )

    def renew(self, name: str, entry: FileEntry) -> bool:
        """Whether a retry may help after a bad read: the fault may lie in the local copy or in transit.

        Drops a copy that does not match ``entry``.
        """
        if self._copies is not None:
            self._copies.drop_damaged(name, entry)
        return not self._storage.is_local

    def fetch_ahead(self, files: Sequence[tuple[str, FileEntry]]) -> None:
        """Prefetch these files, in this order, if local copies are kept."""
        if self._copies is not None:
            self._copies.fetch_ahead(list(files))

    def close(self) -> None:
        """Close files and connections; the next read reopens them."""
        with self._lock:
            self._files.clear()
        if self._copies is not None:
            self._copies.close()

    def _file(self, name: str) -> _Open:
        with self._lock:
            if name not in self._files:
                while self._files and len(self._files) >= self._most_files():
                    del self._files[next(iter(self._files))]
                file = self._storage.open_local(name)
                self._files[name] = _Open(file, file.fileno(), os.fstat(file.fileno()).st_size)
            return self._files[name]

    def _most_files(self) -> int:
        """Open-file limit of this cache: all caches of the process share its handles."""
        handles, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = handles // SHARE_OF_HANDLES // len(self._all)
        return MAX_OPEN_FILES if handles < 0 else max(LEAST_OPEN_FILES, min(MAX_OPEN_FILES, share))
