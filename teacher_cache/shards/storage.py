"""Where a cache lives: a folder or an object-store prefix, through fsspec. All of a cache's files are touched here.

Files appear whole or not at all: locally they are written under a temporary name, synced and renamed; an object store's
upload is atomic by itself. A store's client may raise any exception it likes; here it becomes a UserError of one line.
A store that fails, or does not answer, is asked again, whatever it is asked for.
"""

import copy
import hashlib
import logging
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ConflictError, CorruptCacheError, UserError
from schemas.manifest import FileEntry
from teacher_cache.shards.causes import advice, reason
from teacher_cache.shards.conditional import Conditional, is_refused
from teacher_cache.shards.scratch import scratch_folder
from teacher_cache.shards.streams import SignedUrls, new_buffer

MANIFEST = "manifest.json"
HEAD = "head.safetensors"
MAX_JSON_BYTES = 1 << 30
TEMPORARY_PREFIX = ".tmp-"
LEASE_PREFIX = ".lease"
ATTEMPTS = 6  # at one request, when the store fails
FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0  # seconds between attempts, doubled each time; ± half at random
PATIENCE = 30.0  # seconds for an answer, and …
SLOWEST = 1 << 18  # … bytes a second for its content
LISTING_PATIENCE = 600.0  # seconds for a listing, which a store gives in many pages
FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    UserError,
)  # asking again is no help
PART_BYTES = 1 << 23  # of a file that is read or uploaded in parts
MAX_PARTS = 9000  # of an upload; S3 takes 10,000
_SAFE_NAME = re.compile(r"((tables|signatures)/)?\.?[A-Za-z0-9][A-Za-z0-9._-]*")
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def file_entry(data: bytes) -> FileEntry:
    """Size and sha256 of a file's content."""
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def check_content(data: bytes, entry: FileEntry, where: str) -> None:
    """Raise CorruptCacheError unless ``data`` is the content of the file that the manifest lists as ``entry``."""
    found = file_entry(data)
    if found != entry:
        raise CorruptCacheError(f"{where}: sha256 is {found.sha256}, the manifest says {entry.sha256}")


def has_content(storage: "Storage", name: str, entry: FileEntry) -> bool:
    """Whether a file, which is there, has this content: reads all of it."""
    found = hashlib.sha256()
    for part in storage.stream(name, entry.bytes):
        found.update(part)
    return found.hexdigest() == entry.sha256


class Fence(Protocol):
    """A lease, as far as those who write need it."""

    def check(self, certain: bool = True) -> None:
        """Raise ConflictError when it was lost; not ``certain``: as far as is known without asking a store."""


class Storage:
    """Reads and writes the files of one cache by name (``shard-000000.json``, ``tables/….zst``)."""

    def __init__(self, url: str) -> None:
        """Raises UserError when the URL's protocol is unknown or its package is not installed."""
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"{url}: cannot be opened: {error}") from None
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.has_locks = True  # until a folder's file system turns out to have none
        self._urls = SignedUrls(self._fs)
        self._conditional = Conditional(self._fs, partial(self._call, PATIENCE), url)
        self._fence: Fence | None = None

    def fenced(self, fence: Fence) -> "Storage":
        """The same place for a writer with a lease: once that is lost, nothing is written or removed any more.

        In a store that compares, files are then created only where there is none, or replaced as they were seen while
        the lease held: a writer that was away cannot overwrite what came after it.
        """
        other = copy.copy(self)
        other._fence = fence
        return other

    def where(self, name: str) -> str:
        """The file as a user would write it, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def local_path(self, name: str) -> Path:
        """The file's path; only for local storage."""
        return Path(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether the file is there (asks the store, not a listing that was kept)."""
        path = self._path(name)

        def look() -> bool:
            self._fs.invalidate_cache()
            try:
                self._call(PATIENCE, "info", path)
            except FileNotFoundError:
                return False
            return True

        return self._ask(name, look)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file, by name, sorted; those in ``tables/`` and ``signatures/`` with that prefix.

        Leases are none of a cache's files.
        """
        return {name: size for name, size in self._listed().items() if not name.startswith(LEASE_PREFIX)}

    def lease_names(self) -> list[str]:
        """Names of the leases that processes have, or had when they were killed."""
        return [name for name in self._listed() if name.startswith(LEASE_PREFIX) and _SAFE_NAME.fullmatch(name)]

    def _listed(self) -> dict[str, int]:
        root = self._root.rstrip("/")

        def find() -> dict[str, dict[str, int]]:
            self._fs.invalidate_cache()
            return self._call(LISTING_PATIENCE, "find", root, maxdepth=2, detail=True)

        found = self._ask("", find)
        return {path.removeprefix(root).lstrip("/"): int(found[path]["size"]) for path in sorted(found)}

    def names(self) -> list[str]:
        """Names of all files, as of ``sizes``."""
        return list(self.sizes())

    def size(self, name: str) -> int:
        """Size in bytes; raises CorruptCacheError when the file is missing."""
        path = self._path(name)
        return self._ask(name, lambda: int(self._call(PATIENCE, "size", path)))

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """The whole file; raises CorruptCacheError when it is missing or larger than ``max_bytes``."""
        path, size = self._path(name), self.size(name)
        if size > max_bytes:
            raise CorruptCacheError(f"{self.where(name)}: {size} bytes, at most {max_bytes} are allowed")

        def fetch() -> bytes:
            data = self._call(_patience(size), "cat_file", path)
            if len(data) < size:
                raise OSError(f"{len(data)} of {size} bytes came")
            return data

        return self._ask(name, fetch)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer when the file ends before. Raises CorruptCacheError if it is missing."""
        path = self._path(name)

        def fetch() -> bytes:
            end = start + size
            if self.is_local:  # room is made for all that is asked for
                end = max(start, min(end, self._call(PATIENCE, "size", path)))
            data = self._call(_patience(size), "cat_file", path, start=start, end=end)
            if len(data) < size and start + len(data) < self._call(PATIENCE, "size", path):
                raise OSError(f"{len(data)} of {size} bytes came")
            return data

        return self._ask(name, fetch)

    def parts(self, name: str, size: int) -> Iterator[bytes]:
        """The first ``size`` bytes in parts of PART_BYTES; fewer when the file ends before.

        Raises CorruptCacheError when the file is missing, UserError when it cannot be read.
        """
        yield from self._ranges(name, 0, size)

    def stream(self, name: str, size: int) -> Iterator[bytes | memoryview]:
        """The same in smaller parts, at less cost; each holds until the next is asked for."""
        if self.is_local:
            yield from self._local_stream(name, size)
            return
        done = 0
        for part in self._urls.stream(self._path(name), size, PATIENCE, _patience(size)):
            done += len(part)
            yield part
        yield from self._ranges(name, done, size)

    def _ranges(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        if start < stop:
            stop = min(stop, self.size(name))  # stores refuse a range that begins at the end
        for begin in range(start, stop, PART_BYTES):
            yield self.read_range(name, begin, min(PART_BYTES, stop - begin))

    def _local_stream(self, name: str, size: int) -> Iterator[memoryview]:
        path, buffer = self._path(name), new_buffer()
        with self._ask(name, lambda: open(path, "rb", buffering=0)) as file:
            while n_bytes := self._ask(name, partial(file.readinto, buffer[:size])):
                yield buffer[:n_bytes]
                size -= n_bytes

    def _call(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the store's client, which must answer in time; TimeoutError if it does not."""
        if self.is_local:
            return getattr(self._fs, method)(*arguments, **options)
        if self._fs.async_impl:  # can be cancelled, so that its connection is free again
            return sync(self._fs.loop, getattr(self._fs, f"_{method}"), *arguments, timeout=seconds, **options)
        return _in_time(seconds, partial(getattr(self._fs, method), *arguments, **options))

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        """What is read of the store by ``request``.

        Raises CorruptCacheError when the file is missing, UserError when it cannot be read.
        """
        try:
            return self._patiently(name, "read", request)
        except FileNotFoundError:
            raise CorruptCacheError(f"{self.where(name)}: the file is missing") from None
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.where(name)}: cannot be read: {reason(error)}") from error

    def _patiently(self, name: str, doing: str, request: Callable[[], Answer]) -> Answer:
        """The store's answer to ``request``, which is made again while the store fails; raises its last exception."""
        attempt, delay = 1, FIRST_DELAY
        while True:
            try:
                return request()
            except Exception as error:
                if self.is_local or attempt == ATTEMPTS or isinstance(error, FINAL) or is_refused(error):
                    raise
                problem = f"{self.where(name)}: cannot be {doing}: {reason(error)}"
                logger.warning("%s; asking again (%d of %d)", problem, attempt + 1, ATTEMPTS)
            time.sleep(delay * random.uniform(0.5, 1.5))
            attempt, delay = attempt + 1, min(2 * delay, LONGEST_DELAY)

    def write(self, name: str, data: bytes, owner: str = "") -> FileEntry:
        """Write a small file atomically."""
        self.put(name, data, owner)
        return file_entry(data)

    def put(self, name: str, data: bytes | bytearray, owner: str = "", sha256: str = "") -> None:
        """Write a file atomically: locally by way of a temporary one, to a store in one request.

        ``sha256``: of ``data``, where it is known.
        """
        if self.is_local:
            with self.staged(name, owner) as path:
                path.write_bytes(data)
            return
        final = self._path(name)

        def send(new: bool) -> None:
            if self._urls.put(final, data, sha256 or hashlib.sha256(data).hexdigest(), PATIENCE, new):
                self._fs.invalidate_cache(final)  # of listings, by which its client would not see the file
                return
            options = {"IfNoneMatch": "*"} if new else {}
            self._call(_patience(len(data)), "pipe_file", final, bytes(data), **options)

        with self._writing(name):
            self._publish_object(name, send, lambda tag: self._conditional.replace(final, bytes(data), tag))

    def upload(self, name: str, size: int, parts: Callable[[], Iterator[bytes]]) -> None:
        """Write an object of ``size`` bytes to a store from its parts, of which one or two are in memory at a time.

        It appears when ``parts`` ends; where that raises, nothing does. After a failure of the store ``parts`` is
        called again.
        """
        final, part_bytes = self._path(name), max(PART_BYTES, -(-size // MAX_PARTS))

        def send(new: bool) -> None:
            within, mode = partial(_in_time, _patience(part_bytes)), "xb" if new else "wb"
            file = within(lambda: self._fs._open(final, mode, block_size=part_bytes, autocommit=False))
            try:
                for part in parts():
                    within(partial(file.write, part))
                within(file.close)
                within(file.commit)
            except BaseException:
                with suppress(Exception):  # of which nothing is seen but what the store keeps of the parts
                    within(file.discard)
                    file.closed = True  # or it would be flushed when it is collected
                raise

        with self._writing(name):
            self._publish_object(name, send)

    def conditional(self, name: str) -> tuple[Conditional, str]:
        """How small objects are written on a condition here, and the object's path."""
        return self._conditional, self._path(name)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        path = self._path(name)
        if self._fence is not None:
            self._fence.check()
        try:
            self._patiently(name, "deleted", lambda: self._call(PATIENCE, "rm_file", path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise UserError(f"{self.where(name)}: cannot be deleted: {reason(error)}") from error

    def take(self, name: str, source: "Storage", source_name: str) -> bool:
        """Have another cache's file here as ``name``, its content not passing through: a hard link or a store's copy.

        Returns False where that is not possible. A link is safe since a cache's files are never rewritten in place:
        whoever replaces one renames a new file over its name, and the other name keeps the old content.
        """
        path, final = source._path(source_name), self._path(name)
        if self._fence is not None:
            self._fence.check(certain=False)
        try:
            if self.is_local and source.is_local:
                Path(final).parent.mkdir(parents=True, exist_ok=True)
                os.link(os.path.realpath(path), final)
            elif self._fs is source._fs:
                self._call(_patience(source.size(source_name)), "cp_file", path, final)
            else:
                return False
        except Exception as error:
            logger.debug("%s: neither linked nor copied by its store: %s", source.where(source_name), reason(error))
            return False
        return True

    @contextmanager
    def staged(self, name: str, owner: str = "") -> Iterator[Path]:
        """A local path to write to; becomes the file ``name`` when the block ends well, else it is removed.

        ``owner`` sets apart the temporary names of several writers of one cache. Raises UserError when the disk (or
        the store) does not take the file.
        """
        final = self._path(name)
        with self._writing(name), self._temporary(name, owner) as temporary:
            yield temporary
            self._publish(name, temporary, final)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.where(name)}: cannot be written: {reason(error)}; what was committed before is intact: "
                f"{advice(error)}, and run again"
            ) from error

    @contextmanager
    def _temporary(self, name: str, owner: str) -> Iterator[Path]:
        """A path of a name that no other writer uses, and that ends in the file's own."""
        file_name = f"{TEMPORARY_PREFIX}{owner}{secrets.token_hex(6)}-{name.replace('/', '-')}"
        if not self.is_local:
            with scratch_folder() as folder:
                yield folder / file_name
            return
        folder = Path(self._root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder / file_name
        finally:
            (folder / file_name).unlink(missing_ok=True)

    def _publish(self, name: str, temporary: Path, final: str) -> None:
        if self.is_local:
            Path(final).parent.mkdir(exist_ok=True)
            _sync(temporary)
            if self._fence is not None:
                self._fence.check()
            os.replace(temporary, final)
            _sync(Path(final).parent)
            return
        seconds = _patience(temporary.stat().st_size)

        def send(new: bool) -> None:
            options = {"mode": "create"} if new else {}
            self._call(seconds, "put_file", str(temporary), final, **options)

        self._publish_object(name, send)

    def _publish_object(
        self,
        name: str,
        send: Callable[[bool], None],
        replace: Callable[[str], object] | None = None,
    ) -> None:
        """Have a store take an object: ``send(only if there is none)``.

        Of a writer with a lease, one that is there is replaced as it was seen while the lease held: by ``replace`` of
        its tag, or removed before.
        """
        if self._fence is not None:
            self._fence.check(certain=name.endswith(".json"))  # marks and manifests: what makes others count
        if self._fence is None or not self._conditional.compares:
            self._store(name, partial(send, False))
            return
        for _ in range(ATTEMPTS):
            try:
                self._store(name, partial(send, True))
                return
            except OSError as error:
                if not is_refused(error):
                    raise
            path = self._path(name)
            tag = self._conditional.tag(path)
            self._fence.check()
            if tag is None:
                continue
            if replace is None:
                self._conditional.delete(path, tag)
            elif replace(tag):
                return
        raise ConflictError(f"{self.where(name)}: another process writes it at the same time; run again when it ended")

    def _store(self, name: str, request: Callable[[], object]) -> None:
        """Have the store take something; raises OSError when it does not, as a disk would."""
        try:
            self._patiently(name, "written", request)
        except UserError:
            raise
        except Exception as error:
            raise OSError(reason(error)) from error

    def _path(self, name: str) -> str:
        if not _SAFE_NAME.fullmatch(name):
            raise CorruptCacheError(f"{self.url}: {name!r} is not a name of a cache's file")
        return f"{self._root.rstrip('/')}/{name}"


def _patience(n_bytes: int) -> float:
    return PATIENCE + n_bytes / SLOWEST


def _in_time(seconds: float, request: Callable[[], Answer]) -> Answer:
    """The answer to a request that cannot be cancelled; TimeoutError when it does not come in time."""
    answer: Future[Answer] = Future()
    threading.Thread(target=_answer, args=(answer, request), name="request", daemon=True).start()
    return answer.result(seconds)


def _answer(answer: "Future[Any]", request: Callable[[], Any]) -> None:
    try:
        answer.set_result(request())
    except BaseException as error:
        answer.set_exception(error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
