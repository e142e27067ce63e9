"""Search of a folder or bucket prefix for caches, which are found by their manifests."""

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

MAX_FOLDERS = 20_000  # visited
THREADS = 8
DEPTH = 3
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")  # keys used by fsspec clients


@dataclass(frozen=True)
class Found:
    """A manifest below the prefix."""

    path: str  # of the cache's folder
    bytes: int  # of the manifest
    written_at: datetime | None  # according to the store


@dataclass(frozen=True)
class Listing:
    """The result of a search below a prefix."""

    caches: list[Found]  # sorted by path
    problems: dict[str, str]  # unreadable folder → reason
    left_out: int  # folders with unusable names


class Prefix(Storage):
    """Storage of many caches. As a `Storage`, it reads and writes files at its root."""

    def cache(self, path: str) -> Storage:
        """The storage of the cache at ``path``, whose parts match ``PATH_PART``."""
        return Storage(self.where(path))

    def listing(self, depth: int = DEPTH, advance: Callable[[int, int], None] = lambda done, total: None) -> Listing:
        """Caches up to ``depth`` folders below; does not descend into caches or follow symlinks.

        ``advance(folders done, folders known)``. Raises UserError when there is no such folder, when it is a cache
        itself, or when there are too many folders or caches.
        """
        if not self.can_list:
            raise UserError(f"{self.url}: plain HTTP cannot list folders; give a local folder or an object store")
        if self._manifest("") is not None:
            raise UserError(f"{self.url}: is itself a cache; give the folder that holds caches, or use inspect")
        level, left_out = self._subfolders("")
        caches: list[Found] = []
        problems: dict[str, str] = {}
        done = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for remaining in reversed(range(depth)):
                below: list[str] = []
                self._check_number(done + len(level), len(caches))
                for path, result in zip(level, pool.map(partial(self._visit, remaining), level), strict=True):
                    done += 1
                    advance(done, max(done, len(level)))
                    if isinstance(result, Found):
                        caches.append(result)
                    elif isinstance(result, str):
                        problems[path] = result
                    else:
                        below += result[0]
                        left_out += result[1]
                level = below
        self._check_number(done, len(caches))
        return Listing(sorted(caches, key=lambda found: found.path), problems, left_out)

    def _check_number(self, folders: int, caches: int) -> None:
        if folders > MAX_FOLDERS or caches > MAX_CACHES:
            raise UserError(
                f"{self.url}: {folders} folders and {caches} caches, wanted at most {MAX_FOLDERS} and {MAX_CACHES}; "
                "give a folder further down, or a smaller --depth"
            )

    def files(self, folder: str) -> list[str]:
        """Sorted names of the files directly in ``folder`` (``""``: the root); empty if it does not exist."""
        return sorted(entry.name for entry in self._ls(folder) if not entry.is_folder)

    def _visit(self, remaining: int, path: str) -> Found | str | tuple[list[str], int]:
        """The cache at ``path``; or the error; or the subfolders to visit and the number of skipped ones.

        ``remaining``: levels left to descend.
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
        """Direct entries of a folder."""
        found = self._entries(folder, f"{self._root.rstrip('/')}/{folder}".rstrip("/") or "/")
        if not found and not folder and not (self.is_local and Path(self._root).is_dir()):
            raise UserError(f"{self.url}: empty or missing; give a folder or prefix that holds caches")
        return found


def _time(info: dict[str, Any]) -> datetime | None:
    """Modification time of a file from fsspec's ``info``, if any."""
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
