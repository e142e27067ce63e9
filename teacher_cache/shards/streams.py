"""Whole files by plain HTTP, where a store can sign URLs for them: its own client takes three times the processor time.

What is read comes in small parts, which all take the same few pages of memory. Where anything fails, nothing is raised:
a stream ends, an upload says so, and the rest is done in the client's way, which also knows how to try again.
"""

import logging
import time
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from teacher_cache.shards.answers import SLOWEST, Pace, in_time

STREAM_BYTES = 1 << 18  # larger buffers cost more, in page faults, than they save
URL_SECONDS = 600  # for which a URL is signed: only the request has to begin within them
logger = logging.getLogger(__name__)


class _NoRedirects(HTTPRedirectHandler):
    """A store that sends a client elsewhere is not followed: the client's own way of asking says what to do."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = build_opener(_NoRedirects)


def new_buffer() -> memoryview:
    """What a part is read to; it holds until the next part."""
    return memoryview(bytearray(STREAM_BYTES))


class SignedUrls:
    """Streams of a store's objects by signed URLs, until it turns out that this store has none that work."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self._work = True

    def stream(self, path: str, size: int, patience: float, seconds: float) -> Iterator[memoryview]:
        """The first bytes of an object, ``size`` at most; each part holds until the next is asked for.

        ``patience``: seconds to wait for each part; ``seconds``: for all of them.
        """
        response = self._open(path, patience) if self._work else None
        if response is None:
            return
        buffer, end, pace, done = new_buffer(), time.monotonic() + seconds, Pace(patience, SLOWEST), 0
        with response:
            while size and time.monotonic() < end:
                try:
                    n_bytes = response.readinto(buffer[:size])
                    done += n_bytes
                    pace.check(done)
                except (OSError, HTTPException) as error:
                    logger.debug("%s: the stream broke: %s", path, error)
                    return
                if not n_bytes:
                    return
                yield buffer[:n_bytes]
                size -= n_bytes

    def put(self, path: str, data: bytes | bytearray, sha256: str, patience: float, new: bool = False) -> bool:
        """Write an object; False when it was not, or one does not know. FileExistsError: it is there, and not ``new``.

        ``sha256`` (hex) is that of ``data``: S3 compares what arrives. ``patience``: seconds to wait for the answer,
        and for the store to take a piece.
        """
        if not self._work or getattr(self._fs, "s3_additional_kwargs", None):  # encryption, say, which is not in a URL
            return False
        checksum = b64encode(bytes.fromhex(sha256)).decode()
        response = self._open(path, patience, data, new, client_method="put_object", ChecksumSHA256=checksum)
        if response is None:
            return False
        response.close()
        return True

    def _open(
        self, path: str, patience: float, data: bytes | bytearray | None = None, new: bool = False, **how: str
    ) -> Any:
        try:
            url = self._fs.sign(path, expiration=URL_SECONDS, **how)
            if not url.startswith(("http://", "https://")):
                raise ValueError("the signed URL is none of HTTP")
            headers = {"Content-Type": "application/octet-stream"} if data is not None else {}
            headers |= {"If-None-Match": "*"} if new else {}
            request = Request(url, data, headers, method="GET" if data is None else "PUT")
            seconds = patience + len(data or b"") / SLOWEST  # also for headers that come byte by byte
            return in_time(seconds, lambda: _opener.open(request, timeout=patience))
        except HTTPError as error:
            if new and error.code in (409, 412):
                error.close()
                raise FileExistsError(path) from None
            self._work = self._work and (error.code == 404 or error.code >= 500)
            problem = f"HTTP {error.code}"
            error.close()
        except Exception as error:  # of whatever client
            self._work = False
            problem = type(error).__name__
        logger.debug("%s: not to be had by a signed URL: %s", path, problem)
        return None
