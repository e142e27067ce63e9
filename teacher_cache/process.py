"""What the operating system knows of a process."""

import resource
import sys


def peak_memory_bytes(usage: resource.struct_rusage | None = None) -> int:
    """Largest resident memory so far: of this process, or of the ended one whose ``usage`` is given."""
    usage = usage or resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, others KiB
