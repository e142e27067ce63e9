"""Writing a cache's files: each appears whole or not at all.

Local files are written under a temporary name, synced and renamed; an object store's upload is atomic by itself. A
writer with a lease is fenced: once the lease is lost, nothing is written or deleted any more.
"""

import copy
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from schemas.errors import ConflictError, UserError
from schemas.failures import failure, reason
from schemas.manifest import FileEntry
from teacher_cache.hub import HUB
from teacher_cache.shards import store_requests
from teacher_cache.shards.answers import in_time
from teacher_cache.shards.cache_files import TEMPORARY_PREFIX, file_entry
from teacher_cache.shards.conditional import Conditional, is_refused
from teacher_cache.shards.local_files import sync
from teacher_cache.shards.scratch import scratch_folder
from teacher_cache.shards.store_requests import StoreRequests

if TYPE_CHECKING:
    from teacher_cache.shards.storage import Storage

MAX_PARTS = 9000  # of an upload; S3 takes 10,000
logger = logging.getLogger(__name__)


class Fence(Protocol):
    """The part of a lease that writers need."""

    def check(self, certain: bool = True) -> None:
        """Raise ConflictError if the lease was lost; if not ``certain``, without a request to the store."""


class StoreWriting(StoreRequests):
    """Writes, replaces and deletes the files of one cache."""

    _fence: Fence | None = None

    def fenced(self, fence: Fence) -> Self:
        """The same place, fenced by a lease: once that is lost, nothing is written or deleted any more.

        In a store with conditional writes, files are only created if absent, or replaced if unchanged since seen under
        the lease, so that a writer that was suspended cannot overwrite its successor's files.
        """
        other = copy.copy(self)
        other._fence = fence
        return other

    def write(self, name: str, data: bytes, owner: str = "") -> FileEntry:
        """Write a small file atomically."""
        self.put(name, data, owner)
        return file_entry(data)

    def put(self, name: str, data: bytes | bytearray, owner: str = "", sha256: str = "") -> None:
        """Write a file atomically: locally through a temporary file, to a store in one request.

        ``sha256``: of ``data``, if already known.
        """
        if self.is_local:
            with self.staged(name, owner) as path:
                path.write_bytes(data)
            return
        final = self._path(name)

        def send(new: bool) -> None:
            if self._urls.put(final, data, sha256 or hashlib.sha256(data).hexdigest(), store_requests.PATIENCE, new):
                self._fs.invalidate_cache(final)  # otherwise the client's cached listings would miss the file
                return
            options = {"IfNoneMatch": "*"} if new else {}
            self._call(store_requests.patience(len(data)), "pipe_file", final, bytes(data), **options)

        with self._writing(name):
            self._publish_object(name, send, lambda tag: self._conditional.replace(final, bytes(data), tag))

    def upload(self, name: str, size: int, parts: Callable[[], Iterator[bytes]]) -> None:
        """Write an object of ``size`` bytes to a store in parts, of which one or two are in memory at a time.

        The object appears when ``parts`` is exhausted, and not at all if it raises. ``parts`` is called again after a
        failure of the store.
        """
        final, part_bytes = self._path(name), max(store_requests.PART_BYTES, -(-size // MAX_PARTS))

        def send(new: bool) -> None:
            within, mode = partial(in_time, store_requests.patience(part_bytes)), "xb" if new else "wb"
            file = within(lambda: self._fs._open(final, mode, block_size=part_bytes, autocommit=False))
            try:
                for part in parts():
                    within(partial(file.write, part))
                within(file.close)
                within(file.commit)
            except BaseException:
                with suppress(Exception):  # at worst the store keeps some uploaded parts
                    within(file.discard)
                    file.closed = True  # otherwise it would be flushed on garbage collection
                raise

        with self._writing(name):
            self._publish_object(name, send)

    def put_file(self, name: str, path: Path) -> None:
        """Upload a local file to a store, large ones in parts side by side; the object appears at the end."""
        with self._writing(name):
            self._send(name, path)

    def conditional(self, name: str) -> tuple[Conditional, str]:
        """The client for conditional writes of small objects, and the object's path."""
        self._check_writable(name)
        return self._conditional, self._path(name)

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        path = self._path(name)
        self._check_writable(name)
        if self._fence is not None:
            self._fence.check()
        try:
            self._patiently(name, "deleted", lambda: self._call(store_requests.PATIENCE, "rm_file", path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise failure(error, f"{self.where(name)}: cannot be deleted") from error

    def link_or_copy(self, name: str, source: "Storage", source_name: str) -> bool:
        """Hard-link, or copy within the store, another cache's file as ``name``, without transferring its content.

        Returns False if that is not possible. Links are safe because a cache's files are never rewritten in place:
        replacing one renames a new file over its name, and the other name keeps the old content.
        """
        path, final = source._path(source_name), self._path(name)
        if self._fence is not None:
            self._fence.check(certain=False)
        try:
            if self.is_local and source.is_local:
                Path(final).parent.mkdir(parents=True, exist_ok=True)
                os.link(os.path.realpath(path), final)
            elif self._fs is source._fs:
                self._call(store_requests.patience(source.size(source_name)), "cp_file", path, final)
            else:
                return False
        except Exception as error:
            logger.debug("%s: cannot be linked or copied by the store: %s", source.where(source_name), reason(error))
            return False
        return True

    @contextmanager
    def staged(self, name: str, owner: str = "") -> Iterator[Path]:
        """A local path to write to, published as the file ``name`` if the block succeeds, else removed.

        ``owner`` distinguishes the temporary names of concurrent writers. Raises UserError if the disk (or the store)
        does not accept the file.
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
                error, f"{self.where(name)}: cannot be written", "everything committed before is intact"
            ) from error

    def _check_writable(self, name: str) -> None:
        if not self.can_list:
            raise UserError(f"{self.where(name)}: plain HTTP is read-only; use a folder or an object store")
        if self.url.startswith(HUB):
            raise UserError(f"{self.where(name)}: the Hub takes commits; write to a folder, then `cache-tools push` it")
        folder, separator, _ = name.rpartition("/")
        if self.is_local and separator and os.path.islink(f"{self._root}/{folder}"):
            raise UserError(f"{self.where(folder)}: refusing to write through a link; replace it with a folder")

    @contextmanager
    def _temporary(self, name: str, owner: str) -> Iterator[Path]:
        """A path whose name is unique among writers and ends in the file's own."""
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
            sync(temporary)
            if self._fence is not None:
                self._fence.check()
            os.replace(temporary, final)
            sync(Path(final).parent)
            return
        self._send(name, temporary)

    def _send(self, name: str, path: Path) -> None:
        seconds, final = store_requests.patience(path.stat().st_size), self._path(name)

        def send(new: bool) -> None:
            options = {"mode": "create"} if new else {}
            self._call(seconds, "put_file", str(path), final, **options)

        self._publish_object(name, send)

    def _publish_object(
        self,
        name: str,
        send: Callable[[bool], None],
        replace: Callable[[str], object] | None = None,
    ) -> None:
        """Upload an object with ``send(only_if_absent)``.

        Under a lease, an existing object is only replaced if unchanged since seen under the lease: by ``replace(tag)``,
        or else deleted first.
        """
        if self._fence is not None:
            self._fence.check(certain=name.endswith(".json"))  # marks and manifests, which commit the other files
        if self._fence is None or not self._conditional.compares:
            self._store(name, partial(send, False))
            return
        for _ in range(store_requests.ATTEMPTS):
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
        raise ConflictError(f"{self.where(name)}: another process is writing it; run again once that has ended")

    def _store(self, name: str, request: Callable[[], object]) -> None:
        """Make a write request; raises OSError if it fails, like a disk."""
        try:
            self._patiently(name, "written", request)
        except UserError:
            raise
        except Exception as error:
            raise OSError(reason(error)) from error
