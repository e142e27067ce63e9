"""The one exception class whose message is meant for a user's eyes."""


class UserError(Exception):
    """Bad input, described in one line: what is wrong, where, the value seen, the value wanted, what to do.

    Commands print it as ``error: MESSAGE`` and exit with status 2; nothing is half-written when it is raised.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())  # which may quote a file that somebody made to upset a terminal
        super().__init__("".join(character if character.isprintable() else "\ufffd" for character in line))


class CorruptCacheError(UserError):
    """A file of a cache is not what its index, checksum or schema says."""


class ConflictError(UserError):
    """Another process writes to the same place, or has taken it over."""
