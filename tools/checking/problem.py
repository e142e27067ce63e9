"""A problem of a cache: its shard, its file, and a message."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.errors import CorruptCacheError
from teacher_cache.shards.storage import Storage


class Problem(NamedTuple):
    """``text`` is a message for people that names the file; code must not depend on its wording."""

    shard: str  # name; "" if the problem belongs to no shard
    file: str  # name in the cache; "" if unknown
    text: str

    @staticmethod
    def of(error: CorruptCacheError, storage: Storage, shard: str = "", file: str = "") -> "Problem":
        """The problem of an error about the cache at ``storage``, with file names relative to it."""
        return Problem(shard, file, str(error).removeprefix(storage.where("")))


def problems(check: Callable[[], object], storage: Storage, shard: str = "", file: str = "") -> list[Problem]:
    """The CorruptCacheError that ``check`` raises, as a list of one problem; empty if it raises none."""
    try:
        check()
    except CorruptCacheError as error:
        return [Problem.of(error, storage, shard, file)]
    return []
