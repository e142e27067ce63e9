"""A lease as a locked file in a folder. The lock is released however its process ends."""

import errno
import fcntl
import os
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import UserError
from schemas.failures import failure
from teacher_cache.shards.holder import RECORD_BYTES, Holder, parse_holder
from teacher_cache.shards.slot import Seen, State

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ATTEMPTS = 20  # to open a file in a folder that is being removed
STARTING = 2.0  # seconds allowed between locking a file and writing the holder's record
_open: "weakref.WeakSet[LockedFile]" = weakref.WeakSet()


class NoLocks(Exception):
    """The file system does not support locks."""


class LockedFile:
    """The lease file at ``path``. Raises UserError if it cannot be created, NoLocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._made_folder = False

    def acquire(self, holder: Holder, dead: Seen | None) -> bool:
        """Lock the file and write the holder's record."""
        while True:
            descriptor = self._open_file()
            try:
                if not _lock(descriptor, fcntl.LOCK_EX):
                    os.close(descriptor)
                    return False
                if self._is_path(descriptor):
                    break
            except BaseException as error:
                if isinstance(error, NoLocks) and not os.fstat(descriptor).st_size:
                    self._path.unlink(missing_ok=True)  # others would mistake it for a held lease
                os.close(descriptor)
                raise
            os.close(descriptor)  # the previous holder has just removed the file
        data = _read(descriptor)
        found = parse_holder(data)
        if found is not None and not found.shares_locks and (dead is None or dead.tag != data.hex()):
            os.close(descriptor)  # that machine's locks may be invisible here
            return False
        self._descriptor = descriptor
        _open.add(self)
        self._write(descriptor, holder)
        return True

    def look(self) -> Seen | None:
        """Find out whether the file is locked, and by whom."""
        started = time.monotonic()
        while True:
            try:
                with _problems(self._path):
                    descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            try:
                locked = not _lock(descriptor, fcntl.LOCK_SH)
                data = _read(descriptor)
            finally:
                os.close(descriptor)
            found = parse_holder(data)
            if not locked:
                unknown = found is not None and not found.shares_locks
                return Seen(found, State.UNKNOWN, data.hex()) if unknown else None
            if found is not None and not found.has_ended:
                return Seen(found, State.ALIVE, data.hex())
            if time.monotonic() - started > STARTING:
                return Seen(None, State.ALIVE, data.hex())
            time.sleep(0.01)

    def beat(self, holder: Holder) -> bool:
        """Rewrite the record in place."""
        if self._descriptor is None or not self.is_mine(holder):
            return False
        self._write(self._descriptor, holder)
        return True

    @staticmethod
    def _write(descriptor: int, holder: Holder) -> None:
        try:
            os.pwrite(descriptor, holder.to_bytes(), 0)
        except OSError as error:
            if error.errno not in NO_SPACE:  # commands that free space must start; the lock works without a record
                raise

    def is_mine(self, holder: Holder) -> bool:
        """Whether the path is still the locked file, with no other holder's record."""
        if self._descriptor is None or not self._is_path(self._descriptor):
            return False
        found = parse_holder(_read(self._descriptor))
        return found is None or found.token == holder.token or found.shares_locks

    def free(self, holder: Holder) -> None:
        """Remove the file, and the folder if it was created for it, then the lock."""
        if self._descriptor is None:
            return
        if self.is_mine(holder):
            self._path.unlink(missing_ok=True)
            if self._made_folder:
                with suppress(OSError):  # no longer empty, or already removed
                    if not os.listdir(self._path.parent):
                        self._path.parent.rmdir()
        self.close()

    def close(self) -> None:
        """Release the lock; in a forked process, its share of the lock."""
        descriptor, self._descriptor = self._descriptor, None
        _open.discard(self)
        if descriptor is not None:
            os.close(descriptor)

    def _open_file(self) -> int:
        for attempt in range(ATTEMPTS):
            try:
                with _problems(self._path):
                    self._make_folder()
                    return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            except FileNotFoundError:  # the folder's creator has just removed it
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _make_folder(self) -> None:
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._made_folder = True

    def _is_path(self, descriptor: int) -> bool:
        """Whether the open file is still the one at the path."""
        try:
            named = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        opened = os.fstat(descriptor)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


@contextmanager
def _problems(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        what = f"{path}: cannot open the lease file, which excludes other writers"
        raise failure(error, what) from None


def _lock(descriptor: int, kind: int) -> bool:
    """Lock an open file; False if another process holds the lock."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UserError(f"{os.readlink(f'/proc/self/fd/{descriptor}')}: not a regular file; remove it and run again")
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks from None
        raise UserError(f"the file system's locks: {error.strerror or error}") from None
    return True


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, RECORD_BYTES, 0)


def _close_in_child() -> None:
    for file in list(_open):
        file.close()


os.register_at_fork(after_in_child=_close_in_child)
