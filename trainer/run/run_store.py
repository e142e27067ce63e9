"""A training run's output in a store: the same files as in a folder, under the same names."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from schemas.errors import CorruptCacheError, StoreError
from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage

PARALLEL = 4  # files that one process transfers at a time
OUTAGE = 300.0  # seconds that the store may fail before the run gives up; process groups wait 600 s for a rank
PAUSE = 5.0  # seconds before the next attempt
Done = TypeVar("Done")


class RunStore(Storage):
    """Whole folders of files, up to any depth; small pauses of the store are waited for."""

    safe_name = re.compile(r"(?!(.*/)?\.{1,2}(/|$))[\w .+=,@-]+(/[\w .+=,@-]+)*", re.ASCII)

    def folders(self) -> list[str]:
        """Names of the folders at the top."""
        return [entry.name for entry in self._entries("", self._root.rstrip("/")) if entry.is_folder]

    def files(self, folder: str) -> dict[str, int]:
        """Sizes of all files below a folder, by their names from the top."""
        found: dict[str, int] = {}
        for entry in self._entries(folder, self._path(folder)):
            name = f"{folder}/{entry.name}"
            found |= self.files(name) if entry.is_folder else {name: entry.size}
        return found

    def send(self, folder: Path, names: Iterable[str]) -> None:
        """Upload these files of a local folder, by their names from it."""
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(lambda name: steadily(partial(self.put_file, name, folder / name)), names))

    def fetch(self, name: str, folder: Path, entry: FileEntry | None = None) -> None:
        """Write a file of the store to a local folder; it appears whole, with the content of ``entry``.

        Raises CorruptCacheError if the file is missing or has other content.
        """
        size = self.size(name) if entry is None else entry.bytes
        path, found, received = folder / name, hashlib.sha256(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".tmp")
        with open(unfinished, "wb") as file:
            for part in self.stream(name, size):
                found.update(part)
                received += file.write(part)
        if received != size:
            raise CorruptCacheError(f"{self.where(name)}: {received} bytes instead of {size}")
        if entry is not None and found.hexdigest() != entry.sha256:
            raise CorruptCacheError(f"{self.where(name)}: sha256 {found.hexdigest()[:12]}… is not the mark's")
        os.replace(unfinished, path)

    def fetch_all(self, files: Mapping[str, FileEntry | None], folder: Path) -> None:
        """``fetch`` for several files side by side."""
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(lambda name: self.fetch(name, folder, files[name]), files))

    def remove(self, folder: str, first: str) -> None:
        """Delete all files below a folder: the one named ``first`` in it first, which makes it whole."""
        names = list(self.files(folder))
        mark = f"{folder}/{first}"
        if mark in names:
            names.remove(mark)
            self.delete(mark)
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(self.delete, names))


def steadily(request: Callable[[], Done], seconds: float = OUTAGE) -> Done:
    """Make a request, again and again while the store fails; raises StoreError after ``seconds``."""
    start = time.monotonic()
    while True:
        try:
            return request()
        except StoreError:
            if time.monotonic() - start > seconds:
                raise
        time.sleep(PAUSE)
