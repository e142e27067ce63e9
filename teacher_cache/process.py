"""A process and its memory: what it takes, what is left for it, and when Python looks for garbage in it."""

import gc
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def peak_memory_bytes(usage: resource.struct_rusage | None = None) -> int:
    """Largest resident memory so far: of this process, or of the ended one whose ``usage`` is given."""
    usage = usage or resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, others KiB


def available_memory_bytes() -> int | None:
    """Memory that can be taken without swapping; None where the system does not say (only Linux is asked)."""
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
    """Do not look for reference cycles in a block that makes so many objects that looking takes a third of its time.

    ``gc.collect(0)`` inside of it looks at what is new and at nothing else.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
