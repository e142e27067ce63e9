"""Open local files for reading: regular files only, so that no pipe blocks and no device is read endlessly."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from schemas.errors import UserError
from schemas.failures import failure

MAX_TEXT_BYTES = 1 << 20
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class NotRegularError(OSError):
    """The path is not a regular file; the message says what it is."""


def open_regular(path: str | Path, follow: bool = True) -> FileIO:
    """Open a file for reading, unbuffered. Follows links if ``follow``.

    Raises NotRegularError (without blocking) for pipes, devices, sockets and folders, other OSErrors like ``open``.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise NotRegularError("it is a socket or a device, not a regular file") from None
        if error.errno == errno.ELOOP:
            raise NotRegularError(
                "it is a link, not a regular file" if not follow else "its links form a cycle"
            ) from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegularError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, not a regular file")
        return open(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | Path, max_bytes: int = MAX_TEXT_BYTES, what: str = "cannot be read") -> bytes:
    """Read a whole file. Raises UserError, ``PATH: WHAT: REASON``, also if it is larger than ``max_bytes``."""
    try:
        with open_regular(path) as file:
            data = bytearray()
            while len(data) <= max_bytes and (part := file.read(max_bytes + 1 - len(data))):
                data += part
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise failure(error, f"{path}: {what}") from None
    if len(data) > max_bytes:
        raise UserError(f"{path}: {what}: more than {max_bytes} bytes")
    return bytes(data)
