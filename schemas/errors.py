"""Errors whose message is meant for a user's eyes. Each class has the exit status that commands end with."""


class UserError(Exception):
    """Bad input, described in one line: what is wrong, where, the value seen, the value wanted, what to do.

    Commands print it as ``error: MESSAGE`` and exit with ``exit_code``; nothing is half-written when it is raised.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class CorruptCacheError(UserError):
    """A file of a cache is not what its index, checksum or schema says."""

    exit_code = 3


class FullError(UserError):
    """No room is left: a full disk, a used-up quota, a limit of a file's size."""

    exit_code = 4


class AccessError(UserError):
    """Something may not be read or written: its mode, the credentials, a read-only file system."""

    exit_code = 5


class StoreError(UserError):
    """A store or its network does not answer, or not as it should."""

    exit_code = 6


class ConflictError(UserError):
    """Somebody else holds the place, or has changed it meanwhile."""

    exit_code = 7


class MachineError(UserError):
    """The machine's own limits or faults: open files, memory, a failing disk."""

    exit_code = 8


UNEXPECTED = 70  # exit status after any other exception: a defect of this program


def printable(text: str, keep: str = "") -> str:
    """``text`` with what a terminal would obey rather than show (control, bidi, half characters) as escapes.

    ``keep``: characters that stay as they are, say newlines.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
