"""Write files atomically and durably, with the modes that umask and folder imply."""

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.manifest import FileEntry

SYNC_UNKNOWN = (errno.EINVAL, errno.ENOTSUP)  # of folders, on some network file systems


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically (temporary file, sync, rename): a crash leaves the old or the new file."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that its entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in SYNC_UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def plain_mode(folder: Path) -> int:
    """Return the mode that a new file in ``folder`` gets."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-mode-") as made:
        path = Path(made) / "file"
        path.touch()
        return stat.S_IMODE(path.stat().st_mode)


def files_below(folder: Path) -> list[Path]:
    """List all regular files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def settle_file(path: Path, mode: int) -> FileEntry:
    """Set a file's mode and sync it; return its size and sha256."""
    with open(path, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
            with suppress(PermissionError):  # file systems without modes
                os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(bytes=file.tell(), sha256=digest.hexdigest())


def settle_folder(folder: Path) -> None:
    """Set the modes of all files below a folder and sync files and folders."""
    mode = plain_mode(folder)
    for path in files_below(folder):
        settle_file(path, mode)
    sync_folders(folder)


def sync_folders(folder: Path) -> None:
    """Sync a folder, all folders below it, and its parent."""
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)
    sync_folder(folder.parent)


def difference(path: Path, wanted: FileEntry) -> str | None:
    """Describe how a file differs from ``wanted``; None if it does not. Reads only regular files of the right size."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    if found.st_size != wanted.bytes:
        return f"{found.st_size} bytes instead of {wanted.bytes}"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == wanted.sha256 else f"sha256 {digest[:12]}… instead of {wanted.sha256[:12]}…"
