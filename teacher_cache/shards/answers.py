"""Receive a store's responses (file content, sizes, listings) with limits on bytes and time *during* the transfer."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import sync

from schemas.errors import StoreError
from teacher_cache.shards.opening import HTTP

PIECE = 1 << 18
SLOWEST = 1 << 18  # minimum transfer rate, bytes per second
MAX_FILES = 900_000  # per listing, which takes 200 bytes each: 100,000 units with all signals have 800,000
LISTED = 2_500  # minimum rate of a listing, files per second; S3 sends 1,000 in some 60 ms
Answer = TypeVar("Answer")


class Entry(NamedTuple):
    """A folder entry: the last component of its name, and the size in bytes (files only)."""

    name: str
    is_folder: bool
    size: int


class Pace:
    """Minimum progress of a transfer: ``slowest`` bytes per second after the first ``patience`` seconds."""

    def __init__(self, patience: float, slowest: float) -> None:
        self._start, self._patience, self._slowest = time.monotonic(), patience, slowest

    def check(self, n_bytes: int) -> None:
        """Raise TimeoutError if ``n_bytes`` so far are too few."""
        if n_bytes < (time.monotonic() - self._start - self._patience) * self._slowest:
            raise TimeoutError(f"only {n_bytes} bytes in {time.monotonic() - self._start:.0f} seconds: too slow")


def body(fs: Any, path: str, start: int, stop: int, pace: Pace, seconds: float) -> bytes:
    """Bytes ``[start, stop)`` of a store's file, fewer at its end. Raises TimeoutError after ``seconds``."""
    if is_http(fs):
        return sync(fs.loop, _http_body, fs, path, start, stop, pace, timeout=seconds)
    if is_s3(fs):
        return sync(fs.loop, _s3_body, fs, path, start, stop, pace, timeout=seconds)
    if fs.async_impl:
        return sync(fs.loop, fs._cat_file, path, start=start, end=stop, timeout=seconds)[: stop - start]
    return in_time(seconds, lambda: fs.cat_file(path, start=start, end=stop))[: stop - start]


def is_http(fs: Any) -> bool:
    """Whether this is a plain HTTP server, which has no listings."""
    return not set(HTTP).isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_s3(fs: Any) -> bool:
    """Whether this is s3fs."""
    return type(fs).__module__.partition(".")[0] == "s3fs"


async def _s3_body(fs: Any, path: str, start: int, stop: int, pace: Pace) -> bytes:
    bucket, key, _ = fs.split_path(path)
    try:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
    except OSError as error:
        if error.errno == errno.EINVAL and "InvalidRange" in str(error.__cause__):  # the range starts at the end
            return b""
        raise
    try:
        return await _read_body(answer["Body"].read, 0, stop - start, pace)
    finally:
        answer["Body"].close()


def s3_size(fs: Any, path: str, seconds: float) -> int:
    """A file's size in bytes, in one request where s3fs also lists. Raises FileNotFoundError, TimeoutError."""
    bucket, key, _ = fs.split_path(path)
    return int(sync(fs.loop, fs._call_s3, "head_object", Bucket=bucket, Key=key, timeout=seconds)["ContentLength"])


async def _http_body(fs: Any, url: str, start: int, stop: int, pace: Pace) -> bytes:
    session = await fs.set_session()
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    async with session.get(fs.encode_url(url), headers=headers) as answer:
        if answer.status == 416:  # the range starts at the end
            return b""
        _raise_for(answer, url)
        skip = start if answer.status != 206 else 0  # the server ignores ranges
        return await _read_body(answer.content.read, skip, stop - start, pace)


async def _read_body(read: Callable[[int], Any], skip: int, wanted: int, pace: Pace) -> bytes:
    """Read ``wanted`` bytes after the first ``skip``, and no further."""
    data, passed = bytearray(), 0
    while len(data) < wanted:
        piece = await read(min(PIECE, max(wanted - len(data), skip - passed)))
        if not piece:
            break
        left_out = min(len(piece), skip - passed)
        passed += left_out
        data += piece[left_out : left_out + wanted - len(data)]
        pace.check(passed + len(data))
    return bytes(data)


def http_size(fs: Any, url: str, seconds: float) -> int | None:
    """A file's size in bytes according to the server; None if it does not tell. Raises FileNotFoundError."""
    return sync(fs.loop, _http_size, fs, url, timeout=seconds)


async def _http_size(fs: Any, url: str) -> int | None:
    session, identity = await fs.set_session(), {"Accept-Encoding": "identity"}
    async with session.head(fs.encode_url(url), headers=identity, allow_redirects=True) as answer:
        if answer.status not in (405, 501):
            _raise_for(answer, url)
            if "Content-Length" in answer.headers:
                return int(answer.headers["Content-Length"])
    async with session.get(fs.encode_url(url), headers=identity | {"Range": "bytes=0-0"}) as answer:
        if answer.status == 416:
            return 0
        _raise_for(answer, url)
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal():
            return int(total)
        length = answer.headers.get("Content-Length", "")
        return int(length) if answer.status == 200 and length.isdecimal() else None


def _raise_for(answer: Any, url: str) -> None:
    if answer.status in (404, 410):
        raise FileNotFoundError(url)
    answer.raise_for_status()
    if answer.headers.get("Content-Encoding", "identity") not in ("identity", ""):
        raise StoreError(
            f"{url}: sent with Content-Encoding {answer.headers['Content-Encoding']}, expected identity; turn off "
            "compression on the server"
        )


def entries(fs: Any, folder: str, seconds: float) -> list[Entry]:
    """The immediate entries of a store's folder. Raises FileNotFoundError, TimeoutError, StoreError if too many.

    ``seconds``: to wait for all, or of S3 for the first ones; the others must come at the rate ``LISTED``.
    """
    if is_http(fs):
        raise StoreError(f"{folder}: plain HTTP supports neither listing nor writing; use a folder or an object store")
    if is_s3(fs):
        return sync(fs.loop, _s3_entries, fs, folder, seconds)
    if fs.async_impl:
        found = sync(fs.loop, fs._ls, folder, detail=True, timeout=seconds)
    else:
        found = in_time(seconds, lambda: fs.ls(folder, detail=True))
    check_number(len(found), folder)
    return [_entry(item) for item in found]


async def _s3_entries(fs: Any, folder: str, seconds: float) -> list[Entry]:
    bucket, key, _ = fs.split_path(folder)
    found: list[Entry] = []
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    async with asyncio.timeout(seconds) as limit:
        until = limit.when() or 0.0
        async for item in fs._iterdir(bucket, prefix=prefix):
            if str(item["name"]).partition("/")[2] != prefix:  # some tools create a marker object for the folder itself
                found.append(_entry(item))
            if len(found) % LISTED == 0:
                limit.reschedule(until + len(found) / LISTED)
            check_number(len(found), folder)
    if not found:
        raise FileNotFoundError(folder)
    return found


def _entry(item: dict[str, Any]) -> Entry:
    name = str(item["name"]).rstrip("/").rpartition("/")[2]
    return Entry(name, item["type"] == "directory", int(item["size"] or 0))


def check_number(n: int, folder: str) -> None:
    """Raise StoreError if a listing of ``n`` files is too long for a cache's."""
    if n > MAX_FILES:
        raise StoreError(f"{folder}: the listing has more than {MAX_FILES} files, too many for a cache; check the path")


def local_entries(folder: str) -> Iterator[Entry]:
    """The immediate entries of a local folder. Links count as files and are never followed to folders."""
    with os.scandir(folder) as found:
        for each in found:
            try:
                is_folder = each.is_dir(follow_symlinks=False)
                yield Entry(each.name, is_folder, 0 if is_folder else _size(each))
            except FileNotFoundError:  # deleted concurrently
                continue


def _size(each: "os.DirEntry[str]") -> int:
    try:
        return each.stat().st_size
    except FileNotFoundError:
        return each.stat(follow_symlinks=False).st_size  # a dangling link
    except OSError:
        return 0  # a link cycle


def in_time(seconds: float, request: Callable[[], Answer]) -> Answer:
    """Run a request that cannot be cancelled. Raises TimeoutError after ``seconds``."""
    answer: Future[Answer] = Future()
    threading.Thread(target=_answer, args=(answer, request), name="request", daemon=True).start()
    return answer.result(seconds)


def _answer(answer: "Future[Any]", request: Callable[[], Any]) -> None:
    try:
        answer.set_result(request())
    except BaseException as error:
        answer.set_exception(error)
