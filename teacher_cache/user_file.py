"""Atomic writes of files for users, with permissions that follow the umask."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.errors import UserError
from schemas.failures import failure


def write_whole(out: Path, data: bytes) -> None:
    """Write a file atomically. An existing file is replaced and its mode kept; symlinks are followed.

    Terminals, pipes and devices (``/dev/stdout``) are written to, never replaced. Raises UserError when the file cannot
    be written; an existing one is then untouched.
    """
    try:
        final = Path(os.path.realpath(out))
        mode = final.stat().st_mode if final.exists() else stat.S_IFREG | (0o666 & ~umask())
        if stat.S_ISDIR(mode) or stat.S_ISFIFO(mode) or stat.S_ISBLK(mode):
            raise UserError(f"{out}: cannot be written: it is a folder, a named pipe or a disk; give another file")
        if not stat.S_ISREG(mode):
            with open(final, "wb", buffering=0) as device:
                device.write(data)
            return
        descriptor, temporary = tempfile.mkstemp(prefix=f".{final.name[:100]}.", dir=final.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise failure(error, f"{out}: cannot be written") from None


def umask() -> int:
    """The process's umask. Reading it means setting it, so it is set and restored."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
