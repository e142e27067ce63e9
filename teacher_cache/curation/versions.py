"""What names the versions that a step's judgements depend on."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version

from schemas.errors import UserError


def versions_fingerprint(*libraries: str) -> str:
    """sha256, hex, of the versions of these libraries, and of Python's without its last part.

    Raises UserError if one is not installed.
    """
    named = ["python " + ".".join(platform.python_version_tuple()[:2])]
    try:
        named += [f"{library} {version(library)}" for library in libraries]
    except PackageNotFoundError as error:
        raise UserError(
            f"{error.name}: not installed, but a step of the curation needs it; install the extra 'curate'"
        ) from None
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
