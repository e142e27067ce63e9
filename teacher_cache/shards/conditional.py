"""Small objects of a store, written on a condition: created only if absent, replaced only if still as they were read.

S3 compares in the request itself (``If-None-Match``, ``If-Match``). Of other stores' clients none offers both; there
the content is looked at before and after writing, which narrows the gap in which two writers miss each other.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import sync

from teacher_cache.shards.answers import is_s3

SETTLE = 0.5  # seconds after which a store without conditional writes is asked whose writing stayed
MAX_BYTES = 1 << 16
REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
UNSUPPORTED = ("NotImplemented", "501", "XNotImplemented")
MISSING = ("NoSuchKey", "404", "NoSuchBucket")
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Tagged(NamedTuple):
    """An object's content, and the tag that it has as long as nobody writes it."""

    data: bytes
    tag: str


class Conditional:
    """Conditional requests to a store for objects of at most MAX_BYTES. Raises what the client raises."""

    def __init__(self, fs: Any, call: Callable[..., Any], url: str) -> None:
        """``call(method, *arguments, **options)`` of the client, in time; ``url`` is for messages."""
        self._fs, self._call, self._url = fs, call, url
        self.compares = is_s3(fs)
        self._settle = SETTLE if "memory" not in fs.protocol else 0.0

    def read(self, path: str) -> Tagged | None:
        """The object as it is now; None if there is none."""
        try:
            if is_s3(self._fs):
                return sync(self._fs.loop, self._get, path, timeout=60)
            self._fs.invalidate_cache()
            data = bytes(self._call("cat_file", path, start=0, end=MAX_BYTES))
            return Tagged(data, data.hex())
        except FileNotFoundError:
            return None

    async def _get(self, path: str) -> Tagged:
        bucket, key, _ = self._fs.split_path(path)
        response = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with response["Body"] as body:
            return Tagged(await body.read(MAX_BYTES), response["ETag"])

    def tag(self, path: str) -> str | None:
        """The tag of an object of any size in a store that compares; None if there is none."""
        try:
            self._fs.invalidate_cache(path)
            return str(self._call("info", path)["ETag"])
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> str | None:
        """Write an object that is not there yet; its tag, or None if one is there."""
        return self._write(path, data, None, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Write an object anew; its new tag, or None if it is not the one of ``tag`` any more."""
        return self._write(path, data, tag, IfMatch=tag)

    def delete(self, path: str, tag: str) -> None:
        """Remove an object, unless it is not the one of ``tag`` any more."""
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
                self._call("pipe_file", path, data, **condition)
            except Exception as error:
                if code_of(error) in MISSING and tag is not None:
                    return None
                if code_of(error) in UNSUPPORTED:
                    self._say_unsupported()
                elif code_of(error) not in REFUSED:
                    raise
                # else: the answer to a first attempt may have been lost, and the object be ours
        if not self.compares:
            found = self.read(path)
            if (None if found is None else found.tag) != tag:
                return None
            self._call("pipe_file", path, data)
            time.sleep(self._settle)
        found = self.read(path)
        return found.tag if found is not None and found.data == data else None

    def _say_unsupported(self) -> None:
        if self.compares:
            logger.warning(
                "%s: this store knows no conditional writes; two commands that start on it within %.1f s may miss "
                "each other",
                self._url,
                2 * SETTLE,
            )
        self.compares = False


def code_of(error: BaseException | None) -> str:
    """The code of S3's answer that an exception stands for; empty if it stands for none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def is_refused(error: BaseException) -> bool:
    """Whether the store refused since the request's condition does not hold."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, FileExistsError):
        found = found.__cause__
    return found is not None or code_of(error) in REFUSED
