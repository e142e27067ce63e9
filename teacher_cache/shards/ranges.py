"""Bytes of a cache's files: from open local files, from local copies of remote ones, or by a request each."""

import os
import resource
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

from schemas.failures import failure
from schemas.manifest import FileEntry
from teacher_cache.shards.copies import LocalCopies
from teacher_cache.shards.storage import Storage

MAX_OPEN_FILES = 128  # of one cache
LEAST_OPEN_FILES = 2


def most_open_files() -> int:
    """How many files of one cache stay open: a small part of what the process may open, for it reads many caches."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_FILES if limit < 0 else max(LEAST_OPEN_FILES, min(MAX_OPEN_FILES, limit // 16))


class _Open(NamedTuple):
    """An open file; it is closed when nobody refers to it."""

    file: BinaryIO
    descriptor: int
    size: int  # of committed files, which never change


class FileRanges:
    """Threads may share it; processes may not."""

    def __init__(self, storage: Storage, copies: tuple[str, int] | None) -> None:
        """``copies``: a folder for local copies of a remote cache's files, and how many bytes they may take."""
        self._storage = storage
        self._files: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._copies = None if copies is None or storage.is_local else LocalCopies(storage, *copies)

    @property
    def keeps_copies(self) -> bool:
        """Whether files are fetched to a local folder."""
        return self._copies is not None

    def read(self, name: str, entry: FileEntry, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` of a file; fewer where it ends before.

        Raises CorruptCacheError when the file is missing or, of a copy, not what ``entry`` says; UserError when the
        store cannot be read.
        """
        return self.opened(name, entry)(offset, size)

    def opened(self, name: str, entry: FileEntry) -> Callable[[int, int], bytes]:
        """``read`` of one file, for many ranges of it."""
        if self._copies is not None:
            return partial(self._copies.read, name, entry)
        if not self._storage.is_local:
            return partial(self._storage.read_range, name)
        found = self._files.get(name) or self._file(name)
        return partial(self._pread, name, found)  # holds the file, so that another thread's eviction does not close it

    def _pread(self, name: str, found: "_Open", offset: int, size: int) -> bytes:
        try:
            return os.pread(
                found.descriptor, max(0, min(size, found.size - offset)), offset
            )  # no room for a false size
        except OSError as error:
            raise failure(error, f"{self._storage.where(name)}: cannot be read") from None

    def fetch_ahead(self, files: Sequence[tuple[str, FileEntry]]) -> None:
        """Start to fetch these files, in this order, where copies are kept."""
        if self._copies is not None:
            self._copies.fetch_ahead(list(files))

    def close(self) -> None:
        """Close files and connections; reading again reopens them."""
        with self._lock:
            self._files.clear()
        if self._copies is not None:
            self._copies.close()

    def _file(self, name: str) -> _Open:
        with self._lock:
            if name not in self._files:
                while len(self._files) >= most_open_files():
                    del self._files[next(iter(self._files))]
                file = self._storage.open_local(name)
                self._files[name] = _Open(file, file.fileno(), os.fstat(file.fileno()).st_size)
            return self._files[name]
