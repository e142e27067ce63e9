"""Streamed file contents: counted for progress, and checked against the size and sha256 of a manifest entry."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry

Advance = Callable[[int, int], None]
Data = TypeVar("Data", bytes, bytes | memoryview)


def unseen(done: int, total: int) -> None:
    """A progress callback that does nothing."""


class Progress:
    """Thread-safe byte counter that reports to ``advance(bytes done, total)``."""

    def __init__(self, total: int, advance: Advance = unseen) -> None:
        self._done, self._total, self._advance, self._lock = 0, total, advance, threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Add bytes; negative for bytes that have to be sent again."""
        with self._lock:
            self._done += n_bytes
            self._advance(self._done, self._total)


def checked(parts: Iterator[Data], entry: FileEntry, where: str, progress: Progress) -> Iterator[Data]:
    """Pass the parts of a file through; raises CorruptCacheError after the last one unless they match ``entry``."""
    found, n_bytes = hashlib.sha256(), 0
    try:
        for part in parts:
            found.update(part)
            n_bytes += len(part)
            progress.add(len(part))
            yield part
        if n_bytes != entry.bytes:
            raise CorruptCacheError(f"{where}: {n_bytes} bytes, the manifest says {entry.bytes}; it was not copied")
        if found.hexdigest() != entry.sha256:
            raise CorruptCacheError(
                f"{where}: sha256 is {found.hexdigest()}, the manifest says {entry.sha256}; it was not copied"
            )
    except BaseException:
        progress.add(-n_bytes)
        raise
