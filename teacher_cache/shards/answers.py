"""What a store sends, taken with bounds on bytes and time *while* it comes: content of files, their sizes, listings."""

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
SLOWEST = 1 << 18  # bytes a second that content must come or go with
MAX_FILES = 500_000  # of a folder that is listed: a listing that goes on is no cache's
Answer = TypeVar("Answer")


class Entry(NamedTuple):
    """What lies in a folder: the last part of its name; of files their bytes."""

    name: str
    is_folder: bool
    size: int


class Pace:
    """How much must have come by now: after ``patience`` seconds, ``slowest`` bytes a second."""

    def __init__(self, patience: float, slowest: float) -> None:
        self._start, self._patience, self._slowest = time.monotonic(), patience, slowest

    def check(self, n_bytes: int) -> None:
        """Raise TimeoutError unless ``n_bytes`` are enough."""
        if n_bytes < (time.monotonic() - self._start - self._patience) * self._slowest:
            raise TimeoutError(f"{n_bytes} bytes in {time.monotonic() - self._start:.0f} seconds, too slow to wait for")


def body(fs: Any, path: str, start: int, stop: int, pace: Pace, seconds: float) -> bytes:
    """Bytes ``start`` to ``stop`` of a store's file, fewer where it ends before, in ``seconds`` or TimeoutError."""
    if is_http(fs):
        return sync(fs.loop, _http_body, fs, path, start, stop, pace, timeout=seconds)
    if is_s3(fs):
        return sync(fs.loop, _s3_body, fs, path, start, stop, pace, timeout=seconds)
    if fs.async_impl:
        return sync(fs.loop, fs._cat_file, path, start=start, end=stop, timeout=seconds)[: stop - start]
    return in_time(seconds, lambda: fs.cat_file(path, start=start, end=stop))[: stop - start]


def is_http(fs: Any) -> bool:
    """Whether it is a server of plain files, which has no listing."""
    return not set(HTTP).isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_s3(fs: Any) -> bool:
    """Whether it is s3fs."""
    return type(fs).__module__.partition(".")[0] == "s3fs"


async def _s3_body(fs: Any, path: str, start: int, stop: int, pace: Pace) -> bytes:
    bucket, key, _ = fs.split_path(path)
    try:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
    except OSError as error:
        if error.errno == errno.EINVAL and "InvalidRange" in str(error.__cause__):  # it begins at the end
            return b""
        raise
    try:
        return await _taken(answer["Body"].read, 0, stop - start, pace)
    finally:
        answer["Body"].close()


async def _http_body(fs: Any, url: str, start: int, stop: int, pace: Pace) -> bytes:
    session = await fs.set_session()
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    async with session.get(fs.encode_url(url), headers=headers) as answer:
        if answer.status == 416:  # it begins at the end
            return b""
        _raise_for(answer, url)
        skip = start if answer.status != 206 else 0  # the server knows no ranges
        return await _taken(answer.content.read, skip, stop - start, pace)


async def _taken(read: Callable[[int], Any], skip: int, wanted: int, pace: Pace) -> bytes:
    """``wanted`` bytes after the first ``skip``; what comes after them is not waited for."""
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
    """The bytes of a file as a server says; None where it does not. Raises FileNotFoundError when it is not there."""
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
        raise StoreError(f"{url}: sent with Content-Encoding {answer.headers['Content-Encoding']}, wanted as it is")


def entries(fs: Any, folder: str, seconds: float) -> list[Entry]:
    """What lies right in a folder of a store. Raises FileNotFoundError, TimeoutError, StoreError for too much."""
    if is_http(fs):
        raise StoreError(
            f"{folder}: plain HTTP has no listing, and takes no files; wanted is a folder, or a store with one"
        )
    if is_s3(fs):
        return sync(fs.loop, _s3_entries, fs, folder, timeout=seconds)
    if fs.async_impl:
        found = sync(fs.loop, fs._ls, folder, detail=True, timeout=seconds)
    else:
        found = in_time(seconds, lambda: fs.ls(folder, detail=True))
    _bounded(len(found), folder)
    return [_entry(item) for item in found]


async def _s3_entries(fs: Any, folder: str) -> list[Entry]:
    bucket, key, _ = fs.split_path(folder)
    found: list[Entry] = []
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    async for item in fs._iterdir(bucket, prefix=prefix):
        entry = _entry(item)
        if str(item["name"]).partition("/")[2] != prefix:  # the folder itself, as some tools mark it
            found.append(entry)
        _bounded(len(found), folder)
    if not found:
        raise FileNotFoundError(folder)
    return found


def _entry(item: dict[str, Any]) -> Entry:
    name = str(item["name"]).rstrip("/").rpartition("/")[2]
    return Entry(name, item["type"] == "directory", int(item["size"] or 0))


def _bounded(n: int, folder: str) -> None:
    if n > MAX_FILES:
        raise StoreError(f"{folder}: its listing goes on after {MAX_FILES} files, which no cache has; not listed on")


def local_entries(folder: str) -> Iterator[Entry]:
    """What lies right in a local folder. Links are listed as files, and never followed to folders."""
    with os.scandir(folder) as found:
        for each in found:
            try:
                is_folder = each.is_dir(follow_symlinks=False)
                yield Entry(each.name, is_folder, 0 if is_folder else _size(each))
            except FileNotFoundError:  # gone meanwhile
                continue


def _size(each: "os.DirEntry[str]") -> int:
    try:
        return each.stat().st_size
    except FileNotFoundError:
        return each.stat(follow_symlinks=False).st_size  # a link that leads nowhere
    except OSError:
        return 0  # a link in a circle


def in_time(seconds: float, request: Callable[[], Answer]) -> Answer:
    """The answer to a request that cannot be cancelled; TimeoutError when it does not come in time."""
    answer: Future[Answer] = Future()
    threading.Thread(target=_answer, args=(answer, request), name="request", daemon=True).start()
    return answer.result(seconds)


def _answer(answer: "Future[Any]", request: Callable[[], Any]) -> None:
    try:
        answer.set_result(request())
    except BaseException as error:
        answer.set_exception(error)
