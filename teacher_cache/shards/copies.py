"""A size-bounded folder of local copies of a remote cache's files, shared by all processes of a machine.

Copies are named by their sha256, so caches can share a folder and processes agree on each file. Processes coordinate
through the file system only: a copy appears atomically, by rename, after its checksum was verified; locks are file
locks, released however their process ends. Eviction is least recently used. A copy damaged later is fetched again.
"""

import fcntl
import hashlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from schemas.errors import CorruptCacheError, UserError
from schemas.failures import failure
from schemas.manifest import FileEntry
from schemas.regular_files import open_regular
from teacher_cache.shards.storage import Storage

WAIT_FOR_ROOM = 0.05  # seconds
PARALLEL = 4  # concurrent prefetches

logger = logging.getLogger(__name__)


class LocalCopies:
    """Local copies of one cache's files. Threads and processes may share the folder and the object."""

    def __init__(self, storage: Storage, folder: str, max_bytes: int) -> None:
        """``max_bytes``: limit on all copies together, including those being fetched."""
        self._storage = storage
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._ahead: set[str] = set()
        self._bad: dict[str, str] = {}  # sha256 of files with wrong content: error message
        self._whole: set[str] = set()  # sha256 of copies that this process has verified

    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` of a file's local copy, fetched if missing.

        Raises CorruptCacheError when two fetches in a row have wrong content, UserError when the store cannot be read
        or the folder cannot hold the file.
        """
        while True:
            copy = self._copy(name, entry)
            try:
                with open_regular(copy) as file:
                    return os.pread(file.fileno(), size, start)
            except FileNotFoundError:  # evicted by another process meanwhile
                continue
            except OSError as error:
                raise failure(error, f"{copy}: a local copy cannot be read") from error

    def check_once(self, name: str, entry: FileEntry) -> None:
        """Verify a copy against ``entry`` once per process, and drop it if it is damaged."""
        if entry.sha256 not in self._whole:
            self._copy(name, entry)
            self.drop_damaged(name, entry)
            self._whole.add(entry.sha256)

    def drop_damaged(self, name: str, entry: FileEntry) -> None:
        """Remove a copy that does not match ``entry``, so that it is fetched again."""
        copy = self._folder / entry.sha256
        try:
            with self._held(entry):
                with open_regular(copy) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found == entry.sha256:
                    return
                copy.unlink()
        except FileNotFoundError:  # removed by another process
            return
        except OSError as error:
            raise self._not_written(error) from error
        logger.warning("%s: damaged copy of %s; fetching it again", copy, self._storage.where(name))

    def _copy(self, name: str, entry: FileEntry) -> Path:
        """The local copy, fetched if missing."""
        copy = self._folder / entry.sha256
        if _touch(copy):
            return copy
        if entry.sha256 in self._bad:
            raise CorruptCacheError(self._bad[entry.sha256])
        if entry.bytes > self._max_bytes:
            raise UserError(
                f"{self._storage.where(name)}: {entry.bytes} bytes exceed the limit of {self._max_bytes} for all local "
                "copies; raise it"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._held(entry):
                if not _touch(copy):  # another process may have fetched it meanwhile
                    self._fetch(name, entry, copy)
        except OSError as error:
            raise self._not_written(error) from error
        return copy

    def _held(self, entry: FileEntry) -> AbstractContextManager[None]:
        """Lock held while a copy is created or removed."""
        return _locked(self._folder / f"{entry.sha256[:2]}.lock")

    def _not_written(self, error: OSError) -> UserError:
        return failure(error, f"{self._folder}: a local copy cannot be written", "choose another folder")

    def fetch_ahead(self, files: list[tuple[str, FileEntry]]) -> None:
        """Prefetch these files in the background, in this order, as many as fit.

        Copies already present count as just used, so that later files do not evict earlier ones. Errors surface when
        a file is read.
        """
        ends = itertools.accumulate(entry.bytes for _, entry in files)
        fitting = [file for file, end in zip(files, ends, strict=True) if end <= self._max_bytes]
        present = {entry.sha256 for _, entry in reversed(fitting) if _touch(self._folder / entry.sha256)}
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PARALLEL, "fetch")
            for name, entry in fitting:
                if entry.sha256 not in self._ahead | present:
                    self._ahead.add(entry.sha256)
                    self._pool.submit(self._fetch_quietly, name, entry)

    def close(self) -> None:
        """Wait for running fetches; cancel the rest."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._ahead.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _fetch_quietly(self, name: str, entry: FileEntry) -> None:
        try:
            self._copy(name, entry)
        except UserError as error:
            logger.debug("prefetch failed: %s", error)
        finally:
            with self._lock:
                self._ahead.discard(entry.sha256)

    def _fetch(self, name: str, entry: FileEntry, copy: Path) -> None:
        for attempt in (1, 2):
            with self._unfinished(copy.with_suffix(".part"), entry.bytes) as file:
                found = hashlib.sha256()
                for data in self._storage.stream(name, entry.bytes):
                    found.update(data)
                    file.write(data)
                file.flush()
                if found.hexdigest() == entry.sha256:
                    os.fsync(file.fileno())  # otherwise a power failure can leave the name without the content
                    with self._room():  # a concurrent size count must not miss the file
                        os.replace(file.name, copy)
                    return
                os.unlink(file.name)
            logger.warning("%s: wrong content in attempt %d", self._storage.where(name), attempt)
        self._bad[entry.sha256] = (
            f"{self._storage.where(name)}: fetched twice, its sha256 is {found.hexdigest()}, the manifest says "
            f"{entry.sha256}; restore the file from its origin"
        )
        raise CorruptCacheError(self._bad[entry.sha256])

    @contextmanager
    def _unfinished(self, path: Path, n_bytes: int) -> Iterator[BinaryIO]:
        """A file to write, with its space reserved up front. Waits while others are filling the space."""
        while True:
            with self._room():
                if self._make_room(n_bytes, path):
                    file = open(path, "wb")  # noqa: SIM115
                    fcntl.flock(file, fcntl.LOCK_EX)  # distinguishes it from leftovers of killed processes
                    os.truncate(file.fileno(), n_bytes)
                    break
            time.sleep(WAIT_FOR_ROOM)
        with file:
            yield file

    def _room(self) -> AbstractContextManager[None]:
        """Lock held while files are added, removed or counted."""
        return _locked(self._folder / "room.lock")

    def _make_room(self, n_bytes: int, unfinished: Path) -> bool:
        """Evict least recently used copies, and leftovers of killed processes, until ``n_bytes`` more fit.

        Returns False if they do not fit yet, while others are fetching.
        """
        found = []
        for file in self._folder.iterdir():
            if file == unfinished or file.suffix == ".lock":
                continue
            if file.suffix == ".part" and _is_abandoned(file):
                with suppress(PermissionError):
                    file.unlink(missing_ok=True)
                    continue
            with suppress(FileNotFoundError):
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        excess = sum(size for _, size, _ in found) + n_bytes - self._max_bytes
        for _, size, file in sorted(found):
            if excess > 0 and file.suffix != ".part":
                with suppress(PermissionError):  # another user's
                    file.unlink(missing_ok=True)
                    excess -= size
        return excess <= 0


def _touch(copy: Path) -> bool:
    """Whether the copy exists; marks it as just used."""
    now = time.time_ns()  # kernel timestamps only advance every few milliseconds
    try:
        os.utime(copy, ns=(now, now))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # another user's file: only its owner can touch it
        return copy.is_file()
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which is released when this process ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)  # read access suffices for another user's file
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(unfinished: Path) -> bool:
    """Whether no process is writing the file."""
    try:
        with open(unfinished, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
