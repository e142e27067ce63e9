"""A cache's place: a folder or an object-store prefix. All access to a cache's files goes through ``Storage``.

This file reads and lists; ``store_writing.py`` writes, ``store_requests.py`` bounds and retries requests. Only regular
files are read; ``local_files.py`` follows links.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from io import FileIO

from schemas.errors import CorruptCacheError, MissingFileError, StoreError, UserError
from schemas.manifest import FileEntry
from schemas.regular_files import NotRegularError, open_regular
from teacher_cache.shards import store_requests
from teacher_cache.shards.answers import (
    SLOWEST,
    Entry,
    Pace,
    body,
    check_number,
    entries,
    http_size,
    is_s3,
    local_entries,
    s3_size,
)
from teacher_cache.shards.cache_files import (
    HEAD,
    LEASE_PREFIX,
    MANIFEST,
    MAX_JSON_BYTES,
    MAX_MANIFEST_BYTES,
    SAFE_NAME,
    TEMPORARY_PREFIX,
    VOCABULARY,
    check_content,
    file_entry,
    is_temporary,
)
from teacher_cache.shards.local_files import resolve_link
from teacher_cache.shards.store_writing import StoreWriting
from teacher_cache.shards.streams import new_buffer

__all__ = [
    "HEAD",
    "LEASE_PREFIX",
    "MANIFEST",
    "MAX_JSON_BYTES",
    "MAX_MANIFEST_BYTES",
    "TEMPORARY_PREFIX",
    "VOCABULARY",
    "Storage",
    "check_content",
    "file_entry",
    "has_content",
    "is_temporary",
]


class Storage(StoreWriting):
    """Reads and writes the files of one cache by name (``shard-000000.json``, ``tables/….zst``)."""

    def exists(self, name: str) -> bool:
        """Whether the file exists (asks the store, bypassing cached listings)."""
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
        """Size in bytes of every file, by name, sorted; names in ``tables/`` and ``signatures/`` have that prefix.

        Leases are excluded. Raises UserError for plain HTTP, which has no listings: see ``unlisted``.
        """
        return {name: size for name, size in self._list().items() if not name.startswith(LEASE_PREFIX)}

    def lease_names(self) -> list[str]:
        """Names of all leases, including those of killed processes."""
        return [name for name in self._list() if name.startswith(LEASE_PREFIX) and SAFE_NAME.fullmatch(name)]

    def present(self) -> set[str]:
        """Names of everything in the place itself, leases included: without sizes, which cost a request each on NFS."""
        if self.is_local:
            try:
                return set(self._ask("", lambda: os.listdir(self._root)))
            except CorruptCacheError:  # no such folder
                return set()
        return {entry.name for entry in self._entries("", self._root.rstrip("/") or "/")}

    def _list(self) -> dict[str, int]:
        if not self.can_list:
            raise UserError(f"{self.url}: plain HTTP cannot be listed or written; give a folder, or a store")
        root = self._root.rstrip("/") or "/"
        files: dict[str, int] = {}
        for entry in self._entries("", root):
            if entry.is_folder:
                inside = self._entries(entry.name, f"{root.rstrip('/')}/{entry.name}")
                files |= {f"{entry.name}/{each.name}": each.size for each in inside if not each.is_folder}
            else:
                files[entry.name] = entry.size
            check_number(len(files), self.url)
        return {name: files[name] for name in sorted(files)}

    def _entries(self, name: str, path: str) -> list[Entry]:
        """The entries of a folder; empty if it does not exist."""

        def find() -> list[Entry]:
            if self.is_local:
                return list(local_entries(path))
            self._fs.invalidate_cache()
            return entries(self._fs, path, store_requests.LISTING_PATIENCE)

        try:
            return self._ask(name, find)
        except CorruptCacheError:  # no such folder
            return []

    def names(self) -> list[str]:
        """Names of all files, the keys of ``sizes``."""
        return list(self.sizes())

    def size(self, name: str) -> int:
        """Size in bytes. Raises CorruptCacheError if the file is missing."""
        path = self._path(name)
        if self.is_local:
            with self.open_local(name) as file:
                return os.fstat(file.fileno()).st_size
        return self._ask(name, lambda: self._size_of(path))

    def _size_of(self, path: str) -> int:
        """Size in bytes of a file in a store."""
        if not self.can_list:
            size = http_size(self._fs, path, store_requests.PATIENCE)
            if size is None:
                raise StoreError(f"{path}: the server does not report the file's size, neither to HEAD nor to GET")
            return size
        if is_s3(self._fs):
            return s3_size(self._fs, path, store_requests.PATIENCE)
        self._fs.invalidate_cache()
        info = self._call(store_requests.PATIENCE, "info", path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        return int(info["size"])

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES, size: int | None = None) -> bytes:
        """Read the whole file. Raises CorruptCacheError if it is missing or larger than ``max_bytes``.

        ``size``: in bytes, as a listing says; saves asking a store for it.
        """
        path = self._path(name)
        if self.is_local:
            return self._read_local(name, max_bytes)

        def fetch() -> bytes:  # both anew if another process replaces the object between the two requests
            nonlocal size
            wanted, size = self.size(name) if size is None else size, None
            self._check_size(name, wanted, max_bytes)
            data = self._ask(name, lambda: self._body(path, 0, wanted + 1))
            if len(data) != wanted:
                received = f"{len(data)} of" if len(data) < wanted else "more than the"
                raise ConnectionError(f"received {received} {wanted} bytes that the store had announced")
            return data

        return self._ask(name, fetch)

    def read_if_there(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Read a file that another process may remove at any time; empty if it does not exist."""
        try:
            return self.read(name, max_bytes)
        except MissingFileError:
            return b""

    def _check_size(self, name: str, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise CorruptCacheError(f"{self.where(name)}: {size} bytes, at most {max_bytes} are allowed")

    def _body(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of a file in a store; fewer at its end."""
        if start >= stop:
            return b""
        return body(
            self._fs, path, start, stop, Pace(store_requests.PATIENCE, SLOWEST), store_requests.patience(stop - start)
        )

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read ``size`` bytes from ``start``; fewer at the file's end. Raises CorruptCacheError if it is missing."""
        path = self._path(name)
        if self.is_local:
            with self.open_local(name) as file:
                room = max(0, min(size, os.fstat(file.fileno()).st_size - start))  # pread allocates the full request
                return self._ask(name, lambda: os.pread(file.fileno(), room, start))

        def fetch() -> bytes:
            data = self._body(path, start, start + size)
            if len(data) < size and start + len(data) < self._size_of(path):
                raise ConnectionError(f"received {len(data)} of {size} bytes")
            return data

        return self._ask(name, fetch)

    def open_local(self, name: str) -> FileIO:
        """Open a local file, unbuffered. Raises CorruptCacheError if it is missing, special, or links elsewhere."""
        path = self._path(name)
        try:
            return self._ask(name, lambda: open_regular(resolve_link(self._root, path), follow=False))
        except NotRegularError as error:
            raise CorruptCacheError(f"{self.where(name)}: {error}") from None

    def _read_local(self, name: str, max_bytes: int) -> bytes:
        with self.open_local(name) as file:
            size = os.fstat(file.fileno()).st_size
            self._check_size(name, size, max_bytes)
            return self._ask(name, lambda: file.read(size) if size else b"")

    def parts(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the first ``size`` bytes in parts of PART_BYTES; fewer at the file's end.

        Raises CorruptCacheError if the file is missing, UserError if it cannot be read.
        """
        yield from self._ranges(name, 0, size)

    def stream(self, name: str, size: int) -> Iterator[bytes | memoryview]:
        """``parts``, cheaper and in smaller parts; each is valid until the next iteration."""
        if self.is_local:
            yield from self._local_stream(name, size)
            return
        done = 0
        for part in self._urls.stream(self._path(name), size, store_requests.PATIENCE, store_requests.patience(size)):
            done += len(part)
            yield part
        yield from self._ranges(name, done, size)

    def _ranges(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        for begin in range(start, stop, store_requests.PART_BYTES):
            wanted = min(store_requests.PART_BYTES, stop - begin)
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


def has_content(storage: "Storage", name: str, entry: FileEntry) -> bool:
    """Whether an existing file has this content; reads all of it."""
    found = hashlib.sha256()
    for part in storage.stream(name, entry.bytes):
        found.update(part)
    return found.hexdigest() == entry.sha256
