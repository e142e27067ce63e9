"""Where a cache lives: a folder or an object-store prefix, through fsspec. All of a cache's files are touched here.

Files appear whole or not at all: locally they are written under a temporary name, synced and renamed; an object store's
upload is atomic by itself. A store's client may raise any exception it likes; here it becomes a UserError of one line.
A store that fails, or does not answer, is asked again, whatever it is asked for.

Only regular files are read. A link is followed where it stays in the cache's folder, or where it leads, as in a hub's
local copies, from ``snapshots/REVISION`` to ``blobs`` beside it.
"""

import copy
import hashlib
import logging
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ConflictError, CorruptCacheError, StoreError, UserError
from schemas.failures import failure, is_of_the_store, reason
from schemas.manifest import FileEntry
from schemas.regular_files import NotRegularError, open_regular
from teacher_cache.shards.answers import (
    MAX_FILES,
    SLOWEST,
    Entry,
    Pace,
    body,
    entries,
    http_size,
    in_time,
    is_http,
    local_entries,
)
from teacher_cache.shards.conditional import Conditional, is_refused
from teacher_cache.shards.opening import open_store
from teacher_cache.shards.scratch import scratch_folder
from teacher_cache.shards.streams import SignedUrls, new_buffer

MANIFEST = "manifest.json"
HEAD = "head.safetensors"
MAX_MANIFEST_BYTES = 1 << 24  # 4,096 shards of all signals take two fifths of it; read, it takes twelve times as much
MAX_JSON_BYTES = 1 << 30
TEMPORARY_PREFIX = ".tmp-"
LEASE_PREFIX = ".lease"
ATTEMPTS = 6  # at one request, when the store fails
FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0  # seconds between attempts, doubled each time; ± half at random
PATIENCE = 20.0  # seconds for an answer; its content has more
LISTING_PATIENCE = 45.0  # seconds for a listing, which a store gives in many pages
GIVE_UP = 30.0  # seconds after which nothing is asked again
PART_BYTES = 1 << 23  # of a file that is read or uploaded in parts
MAX_PARTS = 9000  # of an upload; S3 takes 10,000
ELSEWHERE = "give a folder, or a store"
_TEMPORARY = re.compile(r"\.tmp-[A-Za-z0-9._-]*[0-9a-f]{12}-[A-Za-z0-9._-]+")
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


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that a process was writing, to give it another name when it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


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
        self._fs, self._root = open_store(url)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.has_locks = True  # until a folder's file system turns out to have none
        self.can_list = not is_http(self._fs)
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
        if self.is_local:
            return os.path.lexists(path)

        def look() -> bool:
            try:
                self._size_of(path)
            except FileNotFoundError:
                return False
            return True

        return self._ask(name, look)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file, by name, sorted; those in ``tables/`` and ``signatures/`` with that prefix.

        Leases are none of a cache's files. Raises UserError for plain HTTP, which has no listing; ``unlisted`` has the
        files of a cache there.
        """
        return {name: size for name, size in self._listed().items() if not name.startswith(LEASE_PREFIX)}

    def lease_names(self) -> list[str]:
        """Names of the leases that processes have, or had when they were killed."""
        return [name for name in self._listed() if name.startswith(LEASE_PREFIX) and _SAFE_NAME.fullmatch(name)]

    def _listed(self) -> dict[str, int]:
        if not self.can_list:
            raise UserError(f"{self.url}: plain HTTP has no listing, and nothing is written there; {ELSEWHERE}")
        root = self._root.rstrip("/") or "/"
        files: dict[str, int] = {}
        for entry in self._entries("", root):
            if not entry.is_folder:
                files[entry.name] = entry.size
                continue
            inside = self._entries(entry.name, f"{root.rstrip('/')}/{entry.name}")
            files |= {f"{entry.name}/{each.name}": each.size for each in inside if not each.is_folder}
            if len(files) > MAX_FILES:
                raise StoreError(f"{self.url}: more than {MAX_FILES} files, which no cache has")
        return dict(sorted(files.items()))

    def _entries(self, name: str, path: str) -> list[Entry]:
        """What lies in a folder, empty where there is none."""

        def find() -> list[Entry]:
            if self.is_local:
                return list(local_entries(path))
            self._fs.invalidate_cache()
            return entries(self._fs, path, LISTING_PATIENCE)

        try:
            return self._ask(name, find)
        except CorruptCacheError:  # there is no such folder
            return []

    def names(self) -> list[str]:
        """Names of all files, as of ``sizes``."""
        return list(self.sizes())

    def size(self, name: str) -> int:
        """Size in bytes; raises CorruptCacheError when the file is missing."""
        path = self._path(name)
        if self.is_local:
            with self.open_local(name) as file:
                return os.fstat(file.fileno()).st_size
        return self._ask(name, lambda: self._size_of(path))

    def _size_of(self, path: str) -> int:
        """Size of a store's file."""
        if not self.can_list:
            size = http_size(self._fs, path, PATIENCE)
            if size is None:
                raise StoreError(f"{path}: the server does not say how large it is, neither to HEAD nor to GET")
            return size
        self._fs.invalidate_cache()
        info = self._call(PATIENCE, "info", path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        return int(info["size"])

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """The whole file; raises CorruptCacheError when it is missing or larger than ``max_bytes``."""
        path = self._path(name)
        if self.is_local:
            return self._read_local(name, max_bytes)

        size = self.size(name)
        self._check_size(name, size, max_bytes)

        def fetch() -> bytes:
            data = self._body(path, 0, size)
            if len(data) < size:
                raise ConnectionError(f"{len(data)} of {size} bytes came")
            return data

        return self._ask(name, fetch)

    def _check_size(self, name: str, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise CorruptCacheError(f"{self.where(name)}: {size} bytes, at most {max_bytes} are allowed")

    def _body(self, path: str, start: int, stop: int) -> bytes:
        """These bytes of a store's file, or fewer."""
        if start >= stop:
            return b""
        return body(self._fs, path, start, stop, Pace(PATIENCE, SLOWEST), _patience(stop - start))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer when the file ends before. Raises CorruptCacheError if it is missing."""
        path = self._path(name)
        if self.is_local:
            with self.open_local(name) as file:
                room = max(0, min(size, os.fstat(file.fileno()).st_size - start))  # is made for all that is asked for
                return self._ask(name, lambda: os.pread(file.fileno(), room, start))

        def fetch() -> bytes:
            data = self._body(path, start, start + size)
            if len(data) < size and start + len(data) < self._size_of(path):
                raise ConnectionError(f"{len(data)} of {size} bytes came")
            return data

        return self._ask(name, fetch)

    def open_local(self, name: str) -> FileIO:
        """A local file, unbuffered. Raises CorruptCacheError when it is missing, special, or a link that leads out."""
        path = self._path(name)
        try:
            return self._ask(name, lambda: open_regular(self._followed(path), follow=False))
        except NotRegularError as error:
            raise CorruptCacheError(f"{self.where(name)}: {error}") from None

    def _followed(self, path: str) -> str:
        """The path, or what it leads to where it, or the folder it is in, is a link that may be followed."""
        folder = os.path.dirname(path)
        if not os.path.islink(path) and (folder == self._root.rstrip("/") or not os.path.islink(folder)):
            return path
        root, real = os.path.realpath(self._root), os.path.realpath(path)
        allowed, parts = [root], Path(root).parts
        if "snapshots" in parts[:-1]:
            place = len(parts) - 1 - parts[::-1].index("snapshots")
            allowed.append(str(Path(*parts[:place], "blobs")))
        if not any(real.startswith(f"{each.rstrip('/')}/") for each in allowed):
            raise CorruptCacheError(
                f"{path}: a link that leads out of the cache, to {real}; have the file itself there"
            )
        return real

    def _read_local(self, name: str, max_bytes: int) -> bytes:
        with self.open_local(name) as file:
            size = os.fstat(file.fileno()).st_size
            self._check_size(name, size, max_bytes)
            return self._ask(name, lambda: file.read(size) if size else b"")

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
        for begin in range(start, stop, PART_BYTES):
            wanted = min(PART_BYTES, stop - begin)
            part = self.read_range(name, begin, wanted)
            if part:
                yield part
            if len(part) < wanted:
                return

    def _local_stream(self, name: str, size: int) -> Iterator[memoryview]:
        buffer = new_buffer()
        with self.open_local(name) as file:
            while n_bytes := self._ask(name, partial(file.readinto, buffer[:size])):
                yield buffer[:n_bytes]
                size -= n_bytes

    def _call(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the store's client, which must answer in time; TimeoutError if it does not."""
        if self.is_local:
            return getattr(self._fs, method)(*arguments, **options)
        if self._fs.async_impl:  # can be cancelled, so that its connection is free again
            return sync(self._fs.loop, getattr(self._fs, f"_{method}"), *arguments, timeout=seconds, **options)
        return in_time(seconds, partial(getattr(self._fs, method), *arguments, **options))

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        """What is read of the store by ``request``.

        Raises CorruptCacheError when the file is missing, UserError when it cannot be read.
        """
        try:
            return self._patiently(name, "read", request)
        except FileNotFoundError:
            raise CorruptCacheError(f"{self.where(name)}: the file is missing") from None
        except NotRegularError:
            raise
        except Exception as error:
            raise failure(error, f"{self.where(name)}: cannot be read") from error

    def _patiently(self, name: str, doing: str, request: Callable[[], Answer]) -> Answer:
        """The store's answer to ``request``, which is made again while the store fails; raises its last exception."""
        attempt, delay, start = 1, FIRST_DELAY, time.monotonic()
        while True:
            try:
                return request()
            except Exception as error:
                spent = attempt == ATTEMPTS or time.monotonic() - start > GIVE_UP
                if self.is_local or spent or isinstance(error, UserError) or not is_of_the_store(error):
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
            within, mode = partial(in_time, _patience(part_bytes)), "xb" if new else "wb"
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
        self._check_writable(name)
        return self._conditional, self._path(name)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        path = self._path(name)
        self._check_writable(name)
        if self._fence is not None:
            self._fence.check()
        try:
            self._patiently(name, "deleted", lambda: self._call(PATIENCE, "rm_file", path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise failure(error, f"{self.where(name)}: cannot be deleted") from error

    def link_or_copy(self, name: str, source: "Storage", source_name: str) -> bool:
        """Link another cache's file as ``name``, or have the store copy it: its content does not pass through here.

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
        self._check_writable(name)
        try:
            yield
        except OSError as error:
            raise failure(
                error, f"{self.where(name)}: cannot be written", "what was committed before is intact"
            ) from error

    def _check_writable(self, name: str) -> None:
        if not self.can_list:
            raise UserError(f"{self.where(name)}: nothing is written over plain HTTP; {ELSEWHERE}")
        folder, separator, _ = name.rpartition("/")
        if self.is_local and separator and os.path.islink(f"{self._root}/{folder}"):
            raise UserError(f"{self.where(folder)}: a link, through which nothing is written; put a folder there")

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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
