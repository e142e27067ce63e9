"""The target of a transfer: which files it has already, and invisibility of the cache until it is complete.

In a folder, existing files are recognised by content. An object store lists only sizes; there, a marker object says
that the files beside it were uploaded, checked and atomically, by a transfer of the same cache. The marker is written
first, after other caches' files have been removed, and deleted at the end.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import garbage, read_manifest, remove_garbage
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import MANIFEST, TEMPORARY_PREFIX, Storage, has_content
from tools.sharing.copy_files import PARALLEL, File

_MARKER = re.compile(r"\.push-[0-9a-f]{64}\.json")
MARKER_TEXT = b'{"note": "a transfer to this place is not finished; the same command goes on with it"}\n'


class Target:
    """A target as found; ``manifest`` is that of the cache already there, or None."""

    def __init__(self, storage: Storage, identity: str) -> None:
        """``identity``: fingerprint of what is copied, 64 hex digits."""
        self.storage = storage
        self._marker = f".push-{identity}.json"
        self.sizes = storage.sizes()
        self.manifest: Manifest | None = read_manifest(storage) if MANIFEST in self.sizes else None

    def missing(self, files: Sequence[File], parallel: int = PARALLEL) -> list[File]:
        """The files that are absent or differ; in a folder, their content is read."""
        has = list(map_ahead(self._has, files, parallel))
        return [file for file, is_there in zip(files, has, strict=True) if not is_there]

    def _has(self, file: File) -> bool:
        name, entry = file
        if self.sizes.get(name) != entry.bytes:
            return False
        if self.storage.is_local:
            return has_content(self.storage, name, entry)
        return self.manifest is not None or self._marker in self.sizes

    def begin(self) -> None:
        """Remove leftovers of other transfers, and write the marker where one is needed."""
        for name in garbage(self.sizes, None):
            if name.startswith(TEMPORARY_PREFIX):
                self.storage.delete(name)
        if self.storage.is_local or self.manifest is not None or self._marker in self.sizes:
            return
        remove_garbage(self.storage, None)
        self._remove_markers()
        self.storage.put(self._marker, MARKER_TEXT)
        self.sizes = {self._marker: len(MARKER_TEXT)}

    def confirm(self) -> None:
        """Raise UserError when another cache or transfer has appeared here. To be called before the manifest is put."""
        if self.storage.exists(MANIFEST):
            raise UserError(f"{self.storage.where(MANIFEST)}: written by another process in the meantime; run again")
        if not self.storage.is_local and not self.storage.exists(self._marker):
            raise UserError(
                f"{self.storage.url}: another transfer to it has started in the meantime; choose another target"
            )

    def finish(self) -> None:
        """Remove the marker, and shards and tables that the manifest does not list. The manifest must be written."""
        remove_garbage(self.storage, with_lists(self.storage, read_manifest(self.storage)))
        self._remove_markers()

    def _remove_markers(self) -> None:
        for name in self.storage.names():
            if _MARKER.fullmatch(name):
                self.storage.delete(name)


@contextmanager
def opened_target(url: str, identity: str, dry_run: bool) -> Iterator[Target]:
    """A target, under a lease: one process at a time. Without a lease for ``dry_run``, which writes nothing."""
    storage = Storage(url)
    if dry_run:
        yield Target(storage, identity)
        return
    with whole_place(storage, "cache-tools, copying") as lease:
        yield Target(lease.storage, identity)
