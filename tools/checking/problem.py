"""One thing that is wrong with a cache: of which shard, in which file, in words."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.errors import CorruptCacheError
from teacher_cache.shards.storage import Storage


class Problem(NamedTuple):
    """``text`` is for people, and names the file; nothing is decided by what is in it."""

    shard: str  # name; "" of what is no shard's
    file: str  # name in the cache; "" where it is not known
    text: str

    @staticmethod
    def of(error: CorruptCacheError, storage: Storage, shard: str = "", file: str = "") -> "Problem":
        """What an error tells of the cache at ``storage``, with names relative to it."""
        return Problem(shard, file, str(error).removeprefix(storage.where("")))


def problems(check: Callable[[], object], storage: Storage, shard: str = "", file: str = "") -> list[Problem]:
    """The problem that ``check`` raises as a CorruptCacheError, if it does."""
    try:
        check()
    except CorruptCacheError as error:
        return [Problem.of(error, storage, shard, file)]
    return []
