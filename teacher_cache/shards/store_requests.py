"""Requests to a cache's place, a folder or an object-store prefix, through fsspec: bounded in time, and retried.

A store's client may raise any exception; here it becomes a one-line UserError. Any request to a store that fails, or
does not answer in time, is retried.
"""

import logging
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import CorruptCacheError, MissingFileError, UserError
from schemas.failures import failure, is_of_the_store, reason
from schemas.regular_files import NotRegularError
from teacher_cache.shards.answers import SLOWEST, in_time, is_http
from teacher_cache.shards.cache_files import SAFE_NAME
from teacher_cache.shards.conditional import Conditional
from teacher_cache.shards.opening import open_store
from teacher_cache.shards.streams import SignedUrls

ATTEMPTS = 6  # per request, while the store fails
FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0  # seconds between attempts: doubling, with ±50 % jitter
PATIENCE = 20.0  # seconds to wait for an answer; content gets more
LISTING_PATIENCE = 45.0  # seconds to wait for a listing, which comes in many pages
GIVE_UP = 30.0  # seconds after which a request is not retried
PART_BYTES = 1 << 23  # of a file that is read or uploaded in parts
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def patience(n_bytes: int) -> float:
    """Seconds to wait for a transfer of so many bytes."""
    return PATIENCE + n_bytes / SLOWEST


class StoreRequests:
    """A cache's place, and requests to it by file name (``shard-000000.json``, ``tables/….zst``)."""

    safe_name = SAFE_NAME  # of files that may be read and written

    def __init__(self, url: str) -> None:
        """Raises UserError when the URL's protocol is unknown or its package is not installed."""
        self.url = url
        self._fs, self._root = open_store(url)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.has_locks = True  # until the file system of a local folder turns out to have none
        self.can_list = not is_http(self._fs)
        self._urls = SignedUrls(self._fs)
        self._conditional = Conditional(self._fs, partial(self._call, PATIENCE), url)

    def where(self, name: str) -> str:
        """The file's URL as the user would write it, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def local_path(self, name: str) -> Path:
        """The file's path; local storage only."""
        return Path(self._path(name))

    def _path(self, name: str) -> str:
        if not self.safe_name.fullmatch(name):
            raise CorruptCacheError(f"{self.url}: {name!r} is not a name of a cache's file")
        return f"{self._root.rstrip('/')}/{name}"

    def _call(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the store's client. Raises TimeoutError after ``seconds``."""
        if self.is_local:
            return getattr(self._fs, method)(*arguments, **options)
        if self._fs.async_impl:  # cancellable, which frees its connection
            return sync(self._fs.loop, getattr(self._fs, f"_{method}"), *arguments, timeout=seconds, **options)
        return in_time(seconds, partial(getattr(self._fs, method), *arguments, **options))

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        """Make a read request, with retries.

        Raises MissingFileError if the file is missing, UserError if it cannot be read.
        """
        try:
            return self._patiently(name, "read", request)
        except FileNotFoundError:
            raise MissingFileError(f"{self.where(name)}: the file is missing") from None
        except NotRegularError:
            raise
        except Exception as error:
            raise failure(error, f"{self.where(name)}: cannot be read") from error

    def _patiently(self, name: str, doing: str, request: Callable[[], Answer]) -> Answer:
        """Make ``request``, and retry while the store fails; raises the last exception."""
        attempt, delay, start = 1, FIRST_DELAY, time.monotonic()
        while True:
            try:
                return request()
            except Exception as error:
                spent = attempt == ATTEMPTS or time.monotonic() - start > GIVE_UP
                if self.is_local or spent or isinstance(error, UserError) or not is_of_the_store(error):
                    raise
                problem = f"{self.where(name)}: cannot be {doing}: {reason(error)}"
                logger.warning("%s; retrying (attempt %d of %d)", problem, attempt + 1, ATTEMPTS)
            time.sleep(delay * random.uniform(0.5, 1.5))
            attempt, delay = attempt + 1, min(2 * delay, LONGEST_DELAY)
