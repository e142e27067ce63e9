"""Open the places of caches and corpora: supported protocols, and clients that never follow a redirect to another host.

A store is trusted with its own files only. Redirects to another host (possibly one inside the reader's network) are
refused, and responses other than file content are bounded in size.
"""

from functools import lru_cache
from typing import Any
from urllib.parse import urljoin, urlsplit

import fsspec

from schemas.errors import StoreError, UserError

LOCAL, HTTP, S3 = ("file", "local"), ("http", "https"), ("s3", "s3a")
PROTOCOLS = (*LOCAL, *S3, "gs", "gcs", "az", "abfs", "abfss", "hf", *HTTP, "memory")
SHOWN = "file, s3, gs, az (abfs), hf, http, https"
MAX_ANSWER = 1 << 24  # bytes of a response other than file content; a page of a listing takes one million


def protocol_of(url: str) -> str:
    """The protocol of a URL; ``file`` for a path. Raises UserError if it is unsupported, or the URL is invalid text."""
    if "\0" in url or not _is_text(url):
        raise UserError(f"{url}: cannot be opened: it contains a zero byte or is not valid UTF-8; rename it")
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:
        return "file"
    if scheme not in PROTOCOLS:
        raise UserError(f"{url}: cannot be opened: {scheme}:// is not supported; use a folder, or one of {SHOWN}")
    if not rest.strip("/") and scheme != "memory":
        raise UserError(f"{url}: cannot be opened: nothing after ://; give a bucket or host")
    return scheme


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a folder or URL, and the path in it.

    ``~`` is the home folder; ``::`` is part of a name, never fsspec's URL chaining. Raises UserError if the protocol
    is not supported or its package is not installed.
    """
    protocol = protocol_of(url)
    try:
        client = fsspec.get_filesystem_class("file" if protocol in LOCAL else protocol)
        options = {} if protocol in LOCAL else client._get_kwargs_from_urls(url)
        if protocol in HTTP:
            options |= {"get_client": _http_client}
        if protocol in S3:
            options |= {"config_kwargs": {"http_session_cls": _s3_session()}}
        return client(**options), client._strip_protocol(url)
    except (ValueError, ImportError, OSError, AttributeError) as error:
        raise UserError(f"{url}: cannot be opened: {error}") from None


def _is_text(url: str) -> bool:
    try:
        url.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_redirect(before: str, to: str) -> None:
    """Raise StoreError unless the redirect target ``to`` is on the same host, without downgrade to HTTP."""
    old, new = urlsplit(before), urlsplit(urljoin(before, to))
    if (old.hostname, old.port) != (new.hostname, new.port) or (old.scheme, new.scheme) == ("https", "http"):
        shown = f"{new.scheme}://{new.netloc.rpartition('@')[2]}"
        raise StoreError(
            f"{old.scheme}://{old.hostname}{old.path}: redirects to another host, {shown}, which is not followed; use "
            "that address if you trust it"
        )


async def _http_client(**options: Any) -> Any:
    """aiohttp client for fsspec that contacts only the URL's own host."""
    import aiohttp

    async def on_redirect(session: Any, context: Any, params: Any) -> None:
        check_redirect(str(params.url), params.response.headers.get("Location", ""))

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(on_redirect)
    options.pop("loop", None)
    return aiohttp.ClientSession(trace_configs=[trace], auto_decompress=False, **options)


@lru_cache(1)
def _s3_session() -> Any:
    """Class of S3's HTTP sessions: no redirects, bounded responses."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Session(AIOHTTPSession):
        async def _get_session(self, proxy_url: str | None) -> "_Guarded":
            return _Guarded(await super()._get_session(proxy_url))

    return Session


class _Guarded:
    """The part of an aiohttp session that the S3 client uses."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, *arguments: Any, **options: Any) -> Any:
        response = await self._session.request(*arguments, allow_redirects=False, **options)

        async def read() -> bytes:
            """Read a whole response that is not file content."""
            data = bytearray()
            while part := await response.content.read(1 << 16):
                data += part
                if len(data) > MAX_ANSWER:
                    response.close()
                    raise OSError(f"response of more than {MAX_ANSWER} bytes")
            return bytes(data)

        response.read = read
        return response
