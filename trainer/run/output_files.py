"""Files that are whole or not there, also after a power cut, with the modes that the umask and the folder give."""

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
    """Write ``path`` under a temporary name, sync it, and rename it: a crash leaves the old file or the new one."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in SYNC_UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def plain_mode(folder: Path) -> int:
    """The mode of a file that is simply created in ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-mode-") as made:
        path = Path(made) / "file"
        path.touch()
        return stat.S_IMODE(path.stat().st_mode)


def files_below(folder: Path) -> list[Path]:
    """All regular files in a folder and its folders, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def settle_file(path: Path, mode: int) -> FileEntry:
    """Give a file its mode, make it last, and describe it."""
    with open(path, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
            with suppress(PermissionError):  # where the file system has no modes of its own
                os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(bytes=file.tell(), sha256=digest.hexdigest())


def settle_folder(folder: Path) -> None:
    """Give all files in a folder their modes, and make them and their names last."""
    mode = plain_mode(folder)
    for path in files_below(folder):
        settle_file(path, mode)
    sync_folders(folder)


def sync_folders(folder: Path) -> None:
    """Make the names in a folder and in all folders in it last, and its own."""
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)
    sync_folder(folder.parent)


def difference(path: Path, wanted: FileEntry) -> str | None:
    """What is wrong with a file in a few words, or None. Nothing but a regular file of the right size is read."""
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
