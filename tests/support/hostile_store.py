"""Servers that mean harm, of HTTP and of as much of S3 as its client asks: endless, huge, elsewhere, dripping."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CHUNK = bytes(1 << 16)
HUGE = 10**15
PAGE = "".join(
    [
        "<ListBucketResult><Name>b</Name><KeyCount>1000</KeyCount><IsTruncated>true</IsTruncated>",
        "<NextContinuationToken>t</NextContinuationToken>",
        *(
            f"<Contents><Key>cache/shard-{n:020d}.json</Key><Size>1</Size>"
            "<LastModified>2026-11-02T12:00:00Z</LastModified></Contents>"
            for n in range(1000)
        ),
        "</ListBucketResult>",
    ]
).encode()
KINDS = (
    "endless body", "endless manifest", "huge length", "endless listing", "endless page", "endless error", "redirect",
    "redirect manifest", "silence", "drip", "endless header", "gzip",
)  # fmt: skip


class Victim(ThreadingHTTPServer):
    """A host inside somebody's network: it notes every connection."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Noting)


class _Noting(BaseHTTPRequestHandler):
    def handle(self) -> None:
        self.server.requests.append(str(self.client_address))  # type: ignore[attr-defined]


class Store(ThreadingHTTPServer):
    """Answers as ``kind`` says; ``victim``: where redirects lead."""

    daemon_threads = True

    def __init__(self, kind: str, victim: str, over: threading.Event) -> None:
        self.kind, self.victim, self.over = kind, victim, over
        super().__init__(("127.0.0.1", 0), _Hostile)

    def handle_error(self, *_: object) -> None:
        """Clients go away."""


class _Hostile(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        kind = self.server.kind
        listing = "list-type" in parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if kind == "silence":
            self.server.over.wait(100)
            self.close_connection = True
        elif kind == "drip":
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            self._go_on(b"x", every=1.0)
        elif kind == "endless header":
            self.connection.sendall(b"HTTP/1.1 200 OK\r\n")
            self._go_on(b"X-More: " + b"a" * 1000 + b"\r\n")
        elif kind.startswith("redirect") and (self.command == "GET" or kind == "redirect"):
            self._head(307, Location=f"{self.server.victim}/secret", Content_Length="0")
        elif kind == "endless error":
            self._head(500, Transfer_Encoding="chunked")
            self._chunks()
        elif listing:
            self._list(kind)
        elif kind in ("endless listing", "endless page") and self.command == "HEAD":
            self._head(404, Content_Length="0")  # no manifest, so that the place is listed
        elif self.command == "HEAD":
            size = HUGE if kind == "huge length" else 5000
            self._head(200, Content_Length=str(size), ETag='"0"', Last_Modified="Mon, 02 Nov 2026 12:00:00 GMT")
        elif kind == "gzip":
            self._head(200, Content_Encoding="gzip", Content_Length="5000")
            self.wfile.write(bytes(5000))
        elif kind == "huge length":
            self._head(200, Content_Length=str(HUGE))
            self._go_on(CHUNK)
        else:
            self._head(200, Transfer_Encoding="chunked")
            self._chunks()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _list(self, kind: str) -> None:
        if kind == "endless page":
            self._head(200, Transfer_Encoding="chunked", Content_Type="application/xml")
            self._chunks(b"<ListBucketResult>", b"<Contents><Key>cache/a</Key><Size>1</Size></Contents>" * 100)
            return
        self._head(200, Content_Length=str(len(PAGE)), Content_Type="application/xml")
        self.wfile.write(PAGE)

    def _head(self, status: int, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _chunks(self, first: bytes = b"", part: bytes = CHUNK) -> None:
        self.wfile.write(f"{len(first):x}\r\n".encode() + first + b"\r\n" if first else b"")
        self._go_on(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def _go_on(self, part: bytes, every: float = 0.0) -> None:
        self.close_connection = True
        try:
            while not self.server.over.wait(every) if every else not self.server.over.is_set():
                self.connection.sendall(part)
        except OSError:
            return


@contextmanager
def hostile_store(kind: str) -> Iterator[tuple[str, Victim]]:
    """The store's address, and the host that its redirects lead to."""
    over, victim = threading.Event(), Victim()
    store = Store(kind, f"http://localhost:{victim.server_address[1]}", over)
    servers = [victim, store]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{store.server_address[1]}", victim
    finally:
        over.set()
        for server in servers:
            server.shutdown()
            server.server_close()
