"""Conditional writes of small objects: create only if absent, replace only if unchanged since read (compare-and-swap).

S3 does this in the request itself (``If-None-Match``, ``If-Match``), and its answer has the new tag; only after a
refusal or an error the object is read, since the answer to an earlier attempt may have been lost. No other store's
client offers both; there the content is read before and after writing, which narrows the race between two writers
without closing it.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import sync

from teacher_cache.shards.answers import is_s3

SETTLE = 0.5  # seconds before re-reading, in a store without conditional writes, whose write won
MAX_BYTES = 1 << 16
REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
UNSUPPORTED = ("NotImplemented", "501", "XNotImplemented")
MISSING = ("NoSuchKey", "404", "NoSuchBucket")
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Tagged(NamedTuple):
    """An object's content, and a tag that changes with every write."""

    data: bytes
    tag: str


class Conditional:
    """Conditional requests for objects that fit in memory. Raises whatever the client raises."""

    def __init__(self, fs: Any, call: Callable[..., Any], url: str) -> None:
        """``call(method, *arguments, **options)`` calls the client with a timeout; ``url`` is for messages."""
        self._fs, self._call, self._url = fs, call, url
        self.compares = is_s3(fs)
        self._settle = SETTLE if "memory" not in fs.protocol else 0.0

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Tagged | None:
        """The current object, or its first ``max_bytes``; None if there is none."""
        try:
            if is_s3(self._fs):
                return sync(self._fs.loop, self._get, path, max_bytes, timeout=60)
            self._fs.invalidate_cache()
            data = bytes(self._call("cat_file", path, start=0, end=max_bytes))
            return Tagged(data, data.hex())
        except FileNotFoundError:
            return None

    async def _get(self, path: str, max_bytes: int) -> Tagged:
        bucket, key, _ = self._fs.split_path(path)
        response = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with response["Body"] as body:
            data = bytearray()
            while part := await body.read(max_bytes - len(data)):  # of what has arrived
                data += part
            return Tagged(bytes(data), response["ETag"])

    def tag(self, path: str) -> str | None:
        """The tag of an object of any size, in a store with conditional writes; None if there is none."""
        try:
            self._fs.invalidate_cache(path)
            return str(self._call("info", path)["ETag"])
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> str | None:
        """Write an object unless it exists; returns its tag, or None if it exists."""
        return self._write(path, data, None, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Replace the object that has ``tag``; returns the new tag, or None if it has changed."""
        return self._write(path, data, tag, IfMatch=tag)

    def delete(self, path: str, tag: str) -> None:
        """Delete the object if it still has ``tag``."""
        try:
            if self.compares:
                bucket, key, _ = self._fs.split_path(path)
                self._fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=tag)
                self._fs.invalidate_cache(path)
                return
        except Exception as error:
            if code_of(error) in (*REFUSED, *MISSING):
                return
            logger.debug("%s: not deleted on a condition: %s", path, error)
        found = self.read(path)
        if found is not None and found.tag == tag:
            self._call("rm_file", path)

    def _write(self, path: str, data: bytes, tag: str | None, **condition: str) -> str | None:
        if self.compares:
            try:
                answer = self._call("pipe_file", path, data, **condition)
                if isinstance(answer, dict) and answer.get("ETag"):
                    return str(answer["ETag"])
            except Exception as error:
                if code_of(error) in MISSING and tag is not None:
                    return None
                if code_of(error) in UNSUPPORTED:
                    self._say_unsupported()
                elif code_of(error) not in REFUSED:
                    with suppress(Exception):
                        if (own := self._own(path, data)) is not None:
                            return own
                    raise
                # refused: still ours if only the response to an earlier attempt was lost
        if not self.compares:
            found = self.read(path)
            if (None if found is None else found.tag) != tag:
                return None
            self._call("pipe_file", path, data)
            time.sleep(self._settle)
        return self._own(path, data)

    def _own(self, path: str, data: bytes) -> str | None:
        """The object's tag, if its content is what this process wrote."""
        found = self.read(path, max(MAX_BYTES, len(data) + 1))
        return found.tag if found is not None and found.data == data else None

    def _say_unsupported(self) -> None:
        if self.compares:
            logger.warning(
                "%s: this store has no conditional writes; two commands started within %.1f s of each other may not "
                "notice each other",
                self._url,
                2 * SETTLE,
            )
        self.compares = False


def code_of(error: BaseException | None) -> str:
    """The S3 error code behind an exception; empty if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def is_refused(error: BaseException) -> bool:
    """Whether the store rejected the request because its condition failed."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, FileExistsError):
        found = found.__cause__
    return found is not None or code_of(error) in REFUSED
