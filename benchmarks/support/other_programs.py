"""Detect whether other programs used the processors during a measurement, which makes threads look slower."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MAX_SHARE = 0.05  # of one core


@dataclass
class Watch:
    """Wall-clock seconds of a block, and the share of one core that other processes used meanwhile."""

    seconds: float = 0.0
    others: float = 1.0

    @property
    def quiet(self) -> bool:
        """Whether the block ran undisturbed."""
        return self.others <= MAX_SHARE


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure a block, of at least some tenths of a second: the system counts in hundredths. Linux only."""
    watch = Watch()
    own, busy, started = time.process_time(), _busy_seconds(), time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - started
    others = _busy_seconds() - busy - (time.process_time() - own)
    watch.others = max(0.0, others / watch.seconds)


def _busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS
