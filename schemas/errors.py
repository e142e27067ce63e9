"""Errors with messages for users. Each class defines the exit status of commands."""


class UserError(Exception):
    """Bad input, described in one line: what is wrong, where, the value seen, the value wanted, what to do.

    Commands print it as ``error: MESSAGE`` and exit with ``exit_code``; nothing is half-written when it is raised.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class CorruptCacheError(UserError):
    """A file of a cache contradicts its index, checksum or schema."""

    exit_code = 3


class MissingFileError(CorruptCacheError):
    """A file of a cache does not exist."""


class FullError(UserError):
    """No space left: disk full, quota or file size limit reached."""

    exit_code = 4


class AccessError(UserError):
    """No permission to read or write: file mode, credentials, read-only file system."""

    exit_code = 5


class StoreError(UserError):
    """A store or the network does not respond, or responds incorrectly."""

    exit_code = 6


class ConflictError(UserError):
    """Another process holds the place, or has changed it meanwhile."""

    exit_code = 7


class MachineError(UserError):
    """A limit or fault of the machine: open files, memory, a failing disk."""

    exit_code = 8


UNEXPECTED = 70  # exit status for any other exception: a bug in this program


def printable(text: str, keep: str = "") -> str:
    """``text`` with non-printable characters (control, bidi, surrogates) escaped, except those in ``keep``."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
