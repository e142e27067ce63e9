"""A folder or bucket prefix that holds caches: where they are, found by their manifests."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from schemas.catalog_file import MAX_CACHES, PATH_PART
from schemas.errors import UserError
from teacher_cache.shards.answers import Entry
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.store_requests import PATIENCE

MAX_FOLDERS = 20_000  # that are looked into
THREADS = 8
DEPTH = 3
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")  # of stores' clients


@dataclass(frozen=True)
class Found:
    """A manifest below the prefix: the cache's folder, the file's size in bytes and when the store says it came."""

    path: str
    bytes: int
    written_at: datetime | None


@dataclass(frozen=True)
class Listing:
    """What lies below a prefix: caches by path, folders that could not be read, and how many had unusable names."""

    caches: list[Found]
    problems: dict[str, str]
    left_out: int


class Prefix(Storage):
    """The storage of many caches. As a `Storage` it reads and writes files at its root."""

    def cache(self, path: str) -> Storage:
        """The storage of the cache at ``path``, which matches the pattern of paths."""
        return Storage(self.where(path))

    def listing(self, depth: int = DEPTH, advance: Callable[[int, int], None] = lambda done, total: None) -> Listing:
        """Caches up to ``depth`` folders below; nothing is looked for inside a cache, and links are not followed.

        ``advance(folders done, folders known)``. Raises UserError when there is no such folder, when it is a cache
        itself, or when there are too many folders or caches.
        """
        if not self.can_list:
            raise UserError(f"{self.url}: plain HTTP has no listing; give a folder, or a store with one")
        if self._manifest("") is not None:
            raise UserError(f"{self.url}: this is a cache itself; give the folder that holds caches, or use inspect")
        level, left_out = self._subfolders("")
        caches: list[Found] = []
        problems: dict[str, str] = {}
        done = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for remaining in reversed(range(depth)):
                below: list[str] = []
                self._check_number(done + len(level), len(caches))
                for path, answer in zip(level, pool.map(partial(self._look, remaining), level), strict=True):
                    done += 1
                    advance(done, max(done, len(level)))
                    if isinstance(answer, Found):
                        caches.append(answer)
                    elif isinstance(answer, str):
                        problems[path] = answer
                    else:
                        below += answer[0]
                        left_out += answer[1]
                level = below
        self._check_number(done, len(caches))
        return Listing(sorted(caches, key=lambda found: found.path), problems, left_out)

    def _check_number(self, folders: int, caches: int) -> None:
        if folders > MAX_FOLDERS or caches > MAX_CACHES:
            raise UserError(
                f"{self.url}: {folders} folders and {caches} caches, at most {MAX_FOLDERS} and {MAX_CACHES} are "
                "listed; give a folder further down, or a smaller --depth"
            )

    def files(self, folder: str) -> list[str]:
        """Names of the files right in ``folder`` (``""``: at the root), sorted; none when it is not there."""
        return sorted(entry.name for entry in self._ls(folder) if not entry.is_folder)

    def _look(self, remaining: int, path: str) -> Found | str | tuple[list[str], int]:
        """The cache at ``path``; or why it cannot be read; or what to look into next, and how many not to.

        ``remaining``: how many folders further down there may be caches.
        """
        try:
            return self._manifest(path) or (self._subfolders(path) if remaining else ([], 0))
        except UserError as error:
            return str(error).replace(self.where(""), "")

    def _manifest(self, path: str) -> Found | None:
        name = f"{path}/{MANIFEST}".lstrip("/")

        def look() -> dict[str, Any] | None:
            try:
                return self._call(PATIENCE, "info", f"{self._root.rstrip('/')}/{name}")
            except FileNotFoundError:
                return None

        info = self._ask(name, look)
        if info is None or info["type"] != "file":
            return None
        return Found(path, int(info["size"]), _time(info))

    def _subfolders(self, path: str) -> tuple[list[str], int]:
        names = [entry.name for entry in self._ls(path) if entry.is_folder]
        usable = sorted(name for name in names if re.fullmatch(PATH_PART, name))
        return [f"{path}/{name}".lstrip("/") for name in usable], len(names) - len(usable)

    def _ls(self, folder: str) -> list[Entry]:
        """What lies right in a folder."""
        found = self._entries(folder, f"{self._root.rstrip('/')}/{folder}".rstrip("/") or "/")
        if not found and not folder and not (self.is_local and Path(self._root).is_dir()):
            raise UserError(f"{self.url}: nothing is there; give a folder or prefix that holds caches")
        return found


def _time(info: dict[str, Any]) -> datetime | None:
    """When a file was written, from what the store's client says about it."""
    for key in _TIMES:
        value = info.get(key)
        try:
            if isinstance(value, int | float):
                return datetime.fromtimestamp(value, UTC).replace(microsecond=0)
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime):
                return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
        except (ValueError, OverflowError, OSError):
            continue
    return None
