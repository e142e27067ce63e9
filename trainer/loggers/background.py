"""A logger in a thread of its own: a server that is slow, down or gone delays no step and ends no run.

Whatever goes wrong is one warning, and the logger is left alone from then on; ``metrics.jsonl`` has every line anyway.
"""

import logging
import threading
from collections import deque

from trainer.loggers.run_logger import Line, RunLogger

MOST_WAITING = 100_000  # lines
AT_A_TIME = 500  # lines
CLOSING_SECONDS = 60.0
logger = logging.getLogger(__name__)


class Background:
    """Opens, feeds and closes one logger; a daemon thread, so that one that hangs keeps no process alive."""

    def __init__(self, target: RunLogger, closing_seconds: float = CLOSING_SECONDS) -> None:
        self._target, self._closing_seconds = target, closing_seconds
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._ending: bool | None = None  # whether training failed; None: it goes on
        self._broken = False
        self._thread = threading.Thread(target=self._work, name=f"{target.title} logger", daemon=True)

    def start(self) -> None:
        """Start to open the run."""
        self._thread.start()

    def add(self, line: Line) -> None:
        """Hand over a line; never waits."""
        with self._changed:
            if self._broken:
                return
            if len(self._lines) >= MOST_WAITING:
                self._give_up(f"{MOST_WAITING:,} lines wait")
                return
            self._lines.append(line)
            self._changed.notify()

    def close(self, failed: bool) -> None:
        """Hand over that training has ended, and wait a while for the logger to have everything."""
        if self._thread.ident is None:
            return
        with self._changed:
            self._ending = failed
            self._changed.notify()
        self._thread.join(self._closing_seconds)
        if self._thread.is_alive():
            with self._changed:
                self._give_up(f"not done {self._closing_seconds:g} s after the end")

    def _work(self) -> None:
        try:
            self._target.open()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._lines or self._ending is not None)
                    lines = [self._lines.popleft() for _ in range(min(AT_A_TIME, len(self._lines)))]
                    failed = self._ending
                if lines:
                    self._target.write(lines)
                elif failed is not None:
                    self._target.close(failed)
                    return
                if self._broken:
                    return
        except BaseException as error:  # third parties raise anything, SystemExit too
            with self._changed:
                self._give_up(" ".join(str(error).split())[:300] or type(error).__name__)

    def _give_up(self, why: str) -> None:
        """Say so, once. The lock is held."""
        if not self._broken:
            logger.warning(
                "loop.report_to: %s gets no more metrics (%s); metrics.jsonl has all", self._target.title, why
            )
        self._broken = True
        self._lines.clear()
