"""The place of a new cache: nothing of value is overwritten, and failures leave nothing behind.

A sign file names the command in progress: leftovers of killed commands are only removed if it is present. It is deleted
last, after the manifest was written; if both exist, its command was killed in between and is run again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import ConflictError, UserError
from teacher_cache.shards.lease import killed_task, whole_place
from teacher_cache.shards.marks import garbage
from teacher_cache.shards.storage import MANIFEST, TEMPORARY_PREFIX, Storage

UNDER_WAY = ".tmp-under-way"
MAX_SIGN_BYTES = 1 << 12


@contextmanager
def new_cache(url: str, command: str, *settings: object) -> Iterator[Storage]:
    """A place in which a command with these settings writes a new cache, its manifest last.

    It must be empty, or contain leftovers of an interrupted attempt, which are removed. If the block raises, its files
    are removed too. Raises UserError if there are other files, ConflictError if another process writes there.
    """
    task = sign_of(command, *settings).decode().strip()
    storage = check_free(url, command, *settings)
    done = storage.read_if_there(MANIFEST) if killed_task(storage) == task else b""
    with whole_place(storage, command, task=task) as lease:
        if not done or storage.read_if_there(MANIFEST) != done:
            storage = check_free(url, command, *settings)
        storage = storage.fenced(lease)
        clear(storage)
        storage.write(UNDER_WAY, sign_of(command, *settings))
        try:
            yield storage
        except BaseException:
            with suppress(ConflictError):  # the lease is lost: nothing there belongs to this process any more
                if not storage.exists(MANIFEST):
                    clear(storage)
                    storage.delete(UNDER_WAY)
                    _remove_empty_folders(storage)
            raise
        storage.delete(UNDER_WAY)


@contextmanager
def planned_or_cleared(storage: Storage) -> Iterator[None]:
    """A block that writes a plan where the sign is: it removes the sign, and if it raises UserError all files.

    A process that lost its lease removes nothing: the files there belong to another one.
    """
    try:
        yield
    except ConflictError:
        raise
    except UserError:
        clear(storage)
        storage.delete(UNDER_WAY)
        raise
    storage.delete(UNDER_WAY)


def check_free(url: str, command: str, *settings: object) -> Storage:
    """The place, if this command can write a new cache there. Raises UserError if there are other files."""
    storage = Storage(url)
    names = storage.names()
    if MANIFEST in names and not was_killed(storage, names, sign_of(command, *settings)):
        raise UserError(f"{storage.where(MANIFEST)}: a cache already exists; choose another place, or remove it")
    files = [name for name in names if not name.startswith(TEMPORARY_PREFIX)]
    if files and UNDER_WAY not in names and MANIFEST not in names:
        raise UserError(f"{url}: {len(files)} files already there ({files[0]}, …); choose an empty place for the cache")
    return storage


def was_killed(storage: Storage, names: list[str], sign: bytes) -> bool:
    """Whether the same command wrote the existing manifest, and was killed before it could finish."""
    if UNDER_WAY in names:
        return storage.read_if_there(UNDER_WAY, MAX_SIGN_BYTES) == sign
    return killed_task(storage) == sign.decode().strip()


def sign_of(command: str, *settings: object) -> bytes:
    """Content of the sign file of a command with these settings."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    return json.dumps({"unfinished": command, "settings": digest}).encode() + b"\n"


def clear(storage: Storage) -> None:
    """Remove all files of a cache, its manifest first, except the sign, so that leftovers stay recognisable."""
    names = storage.names()
    for name in [*(name for name in names if name == MANIFEST), *garbage(names, None)]:
        if name != UNDER_WAY:
            storage.delete(name)


def _remove_empty_folders(storage: Storage) -> None:
    if storage.is_local:
        folder = Path(storage.local_path("x")).parent
        for path in (folder / "tables", folder):
            with suppress(OSError):
                path.rmdir()
