"""Sending a process a signal at a chosen instant: at the n-th time that it changes something at a place."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from support.commands import Forked

CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")
REQUESTS = ("put_object", "delete_object", "copy_object", "upload_part", "complete_multipart_upload")


def at_change(place: str, n: int, number: int) -> Callable[[], None]:
    """For ``Forked``: the process gets the signal ``number`` just before the n-th change at a folder or in a store."""
    return partial(_install, place, n, number)


def _install(place: str, n: int, number: int) -> None:
    left = n

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            os.kill(os.getpid(), number)

    if place.startswith("s3://"):
        _watch_requests(count)
    sys.addaudithook(partial(_look, place, count))


def _look(place: str, count: Callable[[], None], event: str, arguments: tuple[Any, ...]) -> None:
    opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
    if opens or event in CHANGES:
        if any(str(path).startswith(place) for path in arguments[:2]):
            count()
    elif event == "urllib.Request" and arguments[3] == "PUT" and place.startswith("s3://"):
        count()


def _watch_requests(count: Callable[[], None]) -> None:
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method in REQUESTS:
            count()
        return await call(self, method, *arguments, **options)

    S3FileSystem._call_s3 = counted


def wait_until_stopped(process: Forked, seconds: float = 60) -> bool:
    """Wait until a process has been stopped (True) or has ended (False)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        try:
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "T":
            return True
        time.sleep(0.005)
    raise TimeoutError(str(process.pid))
