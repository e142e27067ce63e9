"""Transfer whole files over plain HTTP with signed URLs: the store's own client takes three times the CPU time.

Downloads come in small parts that reuse one buffer. Failures do not raise: a stream ends early, an upload returns
False, and the caller falls back to the store's client, which also retries.
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

STREAM_BYTES = 1 << 18  # larger buffers cost more in page faults than they save
URL_SECONDS = 600  # lifetime of a signed URL: only the start of the request has to fall within it
logger = logging.getLogger(__name__)


class _NoRedirects(HTTPRedirectHandler):
    """Follows no redirect; the fallback to the store's client handles it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = build_opener(_NoRedirects)


def new_buffer() -> memoryview:
    """Buffer for the parts of a stream."""
    return memoryview(bytearray(STREAM_BYTES))


class SignedUrls:
    """Transfers a store's objects with signed URLs; disables itself once they turn out not to work."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self._work = True

    def stream(self, path: str, size: int, patience: float, seconds: float) -> Iterator[memoryview]:
        """Yield the first ``size`` bytes of an object, or fewer; each part is valid until the next iteration.

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
        """Write an object; False if that failed or the outcome is unknown.

        Raises FileExistsError if ``new`` and the object exists. ``sha256`` (hex) of ``data``: S3 verifies it on
        arrival. ``patience``: seconds to wait for the response, and for each piece to be accepted.
        """
        if not self._work or getattr(self._fs, "s3_additional_kwargs", None):  # e.g. encryption, impossible by URL
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
                raise ValueError("the signed URL is not HTTP")
            headers = {"Content-Type": "application/octet-stream"} if data is not None else {}
            headers |= {"If-None-Match": "*"} if new else {}
            request = Request(url, data, headers, method="GET" if data is None else "PUT")
            seconds = patience + len(data or b"") / SLOWEST  # also bounds headers that trickle in
            return in_time(seconds, lambda: _opener.open(request, timeout=patience))
        except HTTPError as error:
            if new and error.code in (409, 412):
                error.close()
                raise FileExistsError(path) from None
            self._work = self._work and (error.code == 404 or error.code >= 500)
            problem = f"HTTP {error.code}"
            error.close()
        except Exception as error:  # of any client
            self._work = False
            problem = type(error).__name__
        logger.debug("%s: signed URL failed: %s", path, problem)
        return None
