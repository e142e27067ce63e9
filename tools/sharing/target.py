"""The place a cache is copied to: what of it is there from before, and that nobody sees it before it is whole.

A folder's files are known by their content. An object store lists sizes only; there a marker object says that what
stands beside it was put there by a transfer of the same cache, whose every upload was checked and is atomic. The
marker is written before anything else, when all else of a cache is gone, and removed at the end.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import garbage, read_manifest, remove_garbage
from teacher_cache.shards.storage import MANIFEST, TEMPORARY_PREFIX, Storage, has_content
from teacher_cache.shards.table import listed
from tools.sharing.copy_files import PARALLEL, File

_MARKER = re.compile(r"\.push-[0-9a-f]{64}\.json")
MARKER_TEXT = b'{"note": "a transfer to this place is not finished; the same command goes on with it"}\n'


class Target:
    """A place as it was found; ``manifest`` is that of the cache that is there, or None."""

    def __init__(self, storage: Storage, identity: str) -> None:
        """``identity``: 64 hex digits that name what is copied."""
        self.storage = storage
        self._marker = f".push-{identity}.json"
        self.sizes = storage.sizes()
        self.manifest: Manifest | None = read_manifest(storage) if MANIFEST in self.sizes else None

    def missing(self, files: Sequence[File], parallel: int = PARALLEL) -> list[File]:
        """Those of the files that are not there with the right content; a folder's are read."""
        there = list(map_ahead(self._has, files, parallel))
        return [file for file, is_there in zip(files, there, strict=True) if not is_there]

    def _has(self, file: File) -> bool:
        name, entry = file
        if self.sizes.get(name) != entry.bytes:
            return False
        if self.storage.is_local:
            return has_content(self.storage, name, entry)
        return self.manifest is not None or self._marker in self.sizes

    def begin(self) -> None:
        """Make the place ready: nothing of other transfers is left, and the marker is there where one is needed."""
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
        """Raise UserError when another cache, or another transfer, has come here meanwhile: before the manifest."""
        if self.storage.exists(MANIFEST):
            raise UserError(f"{self.storage.where(MANIFEST)}: another process has written it meanwhile; run again")
        if not self.storage.is_local and not self.storage.exists(self._marker):
            raise UserError(
                f"{self.storage.url}: another transfer to this place has begun meanwhile; choose another place"
            )

    def finish(self) -> None:
        """Remove the marker, and shards and tables that the cache does not have. Its manifest must be there."""
        remove_garbage(self.storage, listed(self.storage, read_manifest(self.storage)))
        self._remove_markers()

    def _remove_markers(self) -> None:
        for name in self.storage.names():
            if _MARKER.fullmatch(name):
                self.storage.delete(name)


@contextmanager
def opened_target(url: str, identity: str, dry_run: bool) -> Iterator[Target]:
    """A place to copy to. One process at a time may have it, unless it does not write (``dry_run``)."""
    storage = Storage(url)
    if dry_run:
        yield Target(storage, identity)
        return
    with whole_place(storage, "cache-tools, copying") as lease:
        yield Target(lease.storage, identity)
