"""Watching a folder of local copies: what do they take together at most?"""

import fcntl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Watch:
    """Looks at the sizes a hundred times a second until the block ends, each time while no file comes or goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.looks = 0
        self.most_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            with suppress(FileNotFoundError), open(self.folder / "room.lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.most_bytes = max(self.most_bytes, sum(path.stat().st_size for path in self.folder.iterdir()))
                self.looks += 1
