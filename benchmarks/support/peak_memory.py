"""Peak memory of a block of code, by sampling this process's resident set."""

import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.002
PAGE_BYTES = 4096


class PeakMemory:
    """Context manager; ``bytes`` is the peak inside, minus the resident set at the start."""

    bytes = 0

    def __enter__(self) -> "PeakMemory":
        self._start = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, _resident() - self._start)
            time.sleep(SAMPLE_SECONDS)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
