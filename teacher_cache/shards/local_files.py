"""Local files of a cache: following links safely, and durable writes."""

import os
from pathlib import Path

from schemas.errors import CorruptCacheError


def resolve_link(root: str, path: str) -> str:
    """``path``, or its target if it or its folder is a link.

    Links may point into ``root``, or, as in a hub's local cache, from ``snapshots/REVISION`` to ``blobs`` next to it.
    Raises CorruptCacheError for any other target.
    """
    folder = os.path.dirname(path)
    if not os.path.islink(path) and (folder == root.rstrip("/") or not os.path.islink(folder)):
        return path
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    allowed, parts = [real_root], Path(real_root).parts
    if "snapshots" in parts[:-1]:
        place = len(parts) - 1 - parts[::-1].index("snapshots")
        allowed.append(str(Path(*parts[:place], "blobs")))
    if not any(real.startswith(f"{each.rstrip('/')}/") for each in allowed):
        raise CorruptCacheError(f"{path}: link to {real}, outside the cache; replace it with the file itself")
    return real


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
