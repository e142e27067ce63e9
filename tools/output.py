"""Files that commands write for people: whole or not at all, with the modes that the user's umask says."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.errors import UserError
from schemas.failures import failure


def write_whole(out: Path, data: bytes) -> None:
    """Write the file; one that is there is replaced, with its mode kept. Links are followed.

    A terminal, a pipe or a device (``/dev/stdout``) takes the data itself: it is never replaced by a file. Raises
    UserError when the file cannot be written; then what was there is as it was.
    """
    try:
        final = Path(os.path.realpath(out))
        mode = final.stat().st_mode if final.exists() else stat.S_IFREG | (0o666 & ~umask())
        if stat.S_ISDIR(mode) or stat.S_ISFIFO(mode) or stat.S_ISBLK(mode):
            raise UserError(f"{out}: cannot be written: a folder, a named pipe or a disk is there; name another file")
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
    """The process' own, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
