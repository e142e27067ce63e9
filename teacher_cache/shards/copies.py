"""A bounded folder of local copies of a remote cache's files, shared by all processes of a machine.

A copy is named by its sha256, so several caches share a folder, and two processes that want the same file agree on it.
Nothing but the file system is shared: a copy appears whole, by rename, after its checksum was verified; locks are file
locks, which end with their process, however it ends. Copies that were not used for longest go first. A copy that was
damaged since is fetched once more.
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
PARALLEL = 4  # files fetched ahead at a time

logger = logging.getLogger(__name__)


class LocalCopies:
    """Local copies of one cache's files. Threads and processes may share the folder and the object."""

    def __init__(self, storage: Storage, folder: str, max_bytes: int) -> None:
        """``max_bytes``: the copies together, those being fetched included."""
        self._storage = storage
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._ahead: set[str] = set()
        self._bad: dict[str, str] = {}  # sha256 of files whose content is wrong, and the message
        self._whole: set[str] = set()  # sha256 of copies that were checked by this process

    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` of a file's local copy, which is fetched if it is not there.

        Raises CorruptCacheError when its content is wrong twice in a row, UserError when the store cannot be read or
        the folder cannot hold it.
        """
        while True:
            copy = self._copy(name, entry)
            try:
                with open_regular(copy) as file:
                    return os.pread(file.fileno(), size, start)
            except FileNotFoundError:  # another process has made room meanwhile
                continue
            except OSError as error:
                raise failure(error, f"{copy}: a local copy cannot be read") from error

    def check_once(self, name: str, entry: FileEntry) -> None:
        """Drop a copy that is not what ``entry`` says, if this process has not looked before."""
        if entry.sha256 not in self._whole:
            self._copy(name, entry)
            self.drop_damaged(name, entry)
            self._whole.add(entry.sha256)

    def drop_damaged(self, name: str, entry: FileEntry) -> None:
        """Remove a copy that is not what ``entry`` says, so that it is fetched again."""
        copy = self._folder / entry.sha256
        try:
            with self._held(entry):
                with open_regular(copy) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found == entry.sha256:
                    return
                copy.unlink()
        except FileNotFoundError:  # another process has removed it
            return
        except OSError as error:
            raise self._not_written(error) from error
        logger.warning("%s: a copy of %s was damaged; it is fetched again", copy, self._storage.where(name))

    def _copy(self, name: str, entry: FileEntry) -> Path:
        """The local copy, fetched if it is not there."""
        copy = self._folder / entry.sha256
        if _touched(copy):
            return copy
        if entry.sha256 in self._bad:
            raise CorruptCacheError(self._bad[entry.sha256])
        if entry.bytes > self._max_bytes:
            raise UserError(
                f"{self._storage.where(name)}: {entry.bytes} bytes, more than the {self._max_bytes} that local copies "
                "may take together; allow more"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._held(entry):
                if not _touched(copy):  # another process may have fetched it meanwhile
                    self._fetch(name, entry, copy)
        except OSError as error:
            raise self._not_written(error) from error
        return copy

    def _held(self, entry: FileEntry) -> AbstractContextManager[None]:
        """Held while a copy is made or removed."""
        return _locked(self._folder / f"{entry.sha256[:2]}.lock")

    def _not_written(self, error: OSError) -> UserError:
        return failure(error, f"{self._folder}: a local copy cannot be written", "choose another folder")

    def fetch_ahead(self, files: list[tuple[str, FileEntry]]) -> None:
        """Start to fetch these files in the background, in this order, as many as there is room for.

        Those that are there count as used, so that what comes does not drive out what is needed before it. What goes
        wrong shows when a file is needed.
        """
        ends = itertools.accumulate(entry.bytes for _, entry in files)
        fitting = [file for file, end in zip(files, ends, strict=True) if end <= self._max_bytes]
        present = {entry.sha256 for _, entry in reversed(fitting) if _touched(self._folder / entry.sha256)}
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PARALLEL, "fetch")
            for name, entry in fitting:
                if entry.sha256 not in self._ahead | present:
                    self._ahead.add(entry.sha256)
                    self._pool.submit(self._fetch_quietly, name, entry)

    def close(self) -> None:
        """Wait for what is being fetched; drop what is not begun."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._ahead.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _fetch_quietly(self, name: str, entry: FileEntry) -> None:
        try:
            self._copy(name, entry)
        except UserError as error:
            logger.debug("fetching ahead: %s", error)
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
                    os.fsync(file.fileno())  # or a power cut leaves its name and nothing in it
                    with self._room():  # who counts what there is must not miss it
                        os.replace(file.name, copy)
                    return
                os.unlink(file.name)
            logger.warning("%s: wrong content at attempt %d", self._storage.where(name), attempt)
        self._bad[entry.sha256] = (
            f"{self._storage.where(name)}: fetched twice, its sha256 is {found.hexdigest()}, the manifest says "
            f"{entry.sha256}; fetch the cache again from where it came"
        )
        raise CorruptCacheError(self._bad[entry.sha256])

    @contextmanager
    def _unfinished(self, path: Path, n_bytes: int) -> Iterator[BinaryIO]:
        """A file to be written to, which takes its room from the beginning. Waits for room that others are filling."""
        while True:
            with self._room():
                if self._make_room(n_bytes, path):
                    file = open(path, "wb")  # noqa: SIM115
                    fcntl.flock(file, fcntl.LOCK_EX)  # tells it from what a killed process has left
                    os.truncate(file.fileno(), n_bytes)
                    break
            time.sleep(WAIT_FOR_ROOM)
        with file:
            yield file

    def _room(self) -> AbstractContextManager[None]:
        """Held while files come, go, or are counted."""
        return _locked(self._folder / "room.lock")

    def _make_room(self, n_bytes: int, unfinished: Path) -> bool:
        """Remove what was not used for longest, and what killed processes have left, until ``n_bytes`` more fit.

        They may not yet, while others are fetching.
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


def _touched(copy: Path) -> bool:
    """Whether the copy is there; its time of use becomes now."""
    now = time.time_ns()  # the kernel's own stamps are the same for some milliseconds
    try:
        os.utime(copy, ns=(now, now))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # another user's, who alone may say so
        return copy.is_file()
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which ends with this process."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)  # another user's can be read, and that is enough
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
