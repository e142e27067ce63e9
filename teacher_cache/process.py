"""Memory of the process: peak, memory available to it, and pausing garbage collection."""

import gc
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def peak_memory_bytes(usage: resource.struct_rusage | None = None) -> int:
    """Peak resident memory, bytes: of this process so far, or of the ended one whose ``usage`` is given."""
    usage = usage or resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, others KiB


def available_memory_bytes() -> int | None:
    """Memory that can be allocated without swapping, bytes; None if unknown (only Linux is supported)."""
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def usable_cores() -> int:
    """Processor cores that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Disable automatic garbage collection in a block that creates so many objects that it takes a third of the time.

    ``gc.collect(0)`` inside the block collects new objects only.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
