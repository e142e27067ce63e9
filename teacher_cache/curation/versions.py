"""What names the versions that a step's judgements depend on."""

import hashlib
import platform
from importlib.metadata import version


def versions_fingerprint(*libraries: str) -> str:
    """sha256, hex, of the versions of these libraries, and of Python's without its last part."""
    named = ["python " + ".".join(platform.python_version_tuple()[:2])]
    named += [f"{library} {version(library)}" for library in libraries]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
