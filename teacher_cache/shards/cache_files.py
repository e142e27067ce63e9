"""Names of a cache's files, limits on their sizes, and their checksums."""

import hashlib
import re

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry

MANIFEST = "manifest.json"
HEAD = "head.safetensors"
VOCABULARY = "vocabulary.arrow"
MAX_MANIFEST_BYTES = 1 << 24  # 2.5 times that of 4,096 shards with all signals; parsing takes 12 times the memory
MAX_JSON_BYTES = 1 << 30
TEMPORARY_PREFIX = ".tmp-"
LEASE_PREFIX = ".lease"
SAFE_NAME = re.compile(r"((tables|signatures)/)?\.?[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY = re.compile(r"\.tmp-[A-Za-z0-9._-]*[0-9a-f]{12}-[A-Za-z0-9._-]+")


def file_entry(data: bytes) -> FileEntry:
    """Size and sha256 of a file's content."""
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def check_content(data: bytes, entry: FileEntry, where: str) -> None:
    """Raise CorruptCacheError unless ``data`` has the size and sha256 that the manifest lists as ``entry``."""
    found = file_entry(data)
    if found != entry:
        raise CorruptCacheError(f"{where}: sha256 is {found.sha256}, the manifest says {entry.sha256}")


def is_temporary(name: str) -> bool:
    """Whether the name is that of a file still being written, before its rename."""
    return _TEMPORARY.fullmatch(name) is not None
