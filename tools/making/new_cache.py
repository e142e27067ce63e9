"""The place of a cache that is being made: nothing is there that somebody needs, and failures leave nothing there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.shards.marks import garbage
from teacher_cache.shards.storage import MANIFEST, Storage

UNDER_WAY = ".tmp-under-way"  # there while the cache is made: without a manifest, whatever else is there is leavings


@contextmanager
def new_cache(url: str) -> Iterator[Storage]:
    """A place to write a cache to, its manifest last.

    It must be empty, or hold what an interrupted attempt left, which is removed. So is what the block wrote when it
    raises. Raises UserError when something else is there.
    """
    storage = check_free(url)
    _clear(storage)
    storage.write(UNDER_WAY, b"")
    try:
        yield storage
    except BaseException:
        if not storage.exists(MANIFEST):
            _clear(storage)
            storage.delete(UNDER_WAY)
            _remove_empty_folders(storage)
        raise
    storage.delete(UNDER_WAY)


def check_free(url: str) -> Storage:
    """The place, if a new cache can be written there. Raises UserError when something else is there."""
    storage = Storage(url)
    names = storage.names()
    if MANIFEST in names:
        raise UserError(f"{storage.where(MANIFEST)}: a cache is there already; choose another place, or remove it")
    if names and UNDER_WAY not in names:
        raise UserError(f"{url}: {len(names)} files are there ({names[0]}, …); choose an empty place for the new cache")
    return storage


def _clear(storage: Storage) -> None:
    """Remove all of a cache but the sign that it is under way, which goes last: what is left stays recognisable."""
    for name in garbage(storage.names(), None):
        if name != UNDER_WAY:
            storage.delete(name)


def _remove_empty_folders(storage: Storage) -> None:
    if storage.is_local:
        folder = Path(storage.local_path("x")).parent
        for path in (folder / "tables", folder):
            with suppress(OSError):
                path.rmdir()
