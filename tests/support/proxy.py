"""A server between clients and the S3 server: it notes what is asked for, and fails as often as it is told to."""

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import urlsplit

import fsspec

FAULTS = ("error", "silence", "stall", "truncation", "reset")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Proxy(ThreadingHTTPServer):
    """Passes requests on to ``endpoint``; ``shares``: of the GETs of objects, by fault."""

    daemon_threads = True

    def __init__(self, endpoint: str, shares: dict[str, float], flips: dict[str, int], delay: float) -> None:
        """``flips``: in how many answers with a part of a file (by name) a bit is changed; ``delay``: of tars."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urlsplit(endpoint).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str]] = []  # (method, object or prefix)
        self.injected: Counter[str] = Counter()
        self.over = threading.Event()
        self.delay = delay
        self._shares, self._flips, self._rng, self._lock = shares, dict(flips), random.Random(0), threading.Lock()

    def note(self, method: str, url: str) -> str | None:
        """Note a request; returns what is to go wrong with it."""
        path, query = urlsplit(url).path, urlsplit(url).query
        name = path.rsplit("/", 1)[1]
        with self._lock:
            self.requests.append((method, path))
            if method != "GET" or "list-type" in query:
                return None
            fault = self._rng.choices(
                (*FAULTS, None), [*(self._shares.get(fault, 0.0) for fault in FAULTS), 1 - sum(self._shares.values())]
            )[0]
            if fault is None and self._flips.get(name, 0) > 0:
                self._flips[name] -= 1
                fault = "flip"
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away whenever they like."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed
            self.close_connection = True
            return
        fault = self.server.note(self.command, self.path)
        if fault == "error":
            self.send_response_only(random.choice((500, 503)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "silence":
            self.server.over.wait()
            self.close_connection = True
            return
        upstream = HTTPConnection(self.server.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if urlsplit(self.path).path.endswith(".tar"):
            time.sleep(self.server.delay)
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() in ("connection", "transfer-encoding", "content-length"):
                continue
            if fault == "flip" and name.lower().startswith("x-amz-checksum"):
                continue  # many stores send none, and with one the client itself would find the bit
            self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault not in ("stall", "truncation", "reset"):
            self.wfile.write(data)
            return
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        if fault == "stall":
            self.server.over.wait()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Nothing: ``Proxy.requests`` has it."""


@contextmanager
def proxied(
    endpoint: str, shares: dict[str, float] | None = None, flips: dict[str, int] | None = None, delay: float = 0.0
) -> Iterator[Proxy]:
    """A proxy before ``endpoint`` that ``s3://`` URLs lead to meanwhile, also in processes that are started."""
    proxy = Proxy(endpoint, shares or {}, flips or {}, delay)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    clients = fsspec.get_filesystem_class("s3")
    try:
        clients.clear_instance_cache()
        with mock.patch.dict(os.environ, AWS_ENDPOINT_URL=proxy.endpoint, AWS_ENDPOINT_URL_S3=proxy.endpoint):
            yield proxy
    finally:
        clients.clear_instance_cache()
        proxy.over.set()
        proxy.shutdown()
        proxy.server_close()
