"""A plain HTTP server of a folder, with or without ranges."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    """Files as they are, folders without a listing."""

    ranges = False

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range", "")
        if not path.is_file() or not self.ranges or not asked.startswith("bytes="):
            super().do_GET()
            return
        data = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            self.send_error(416)
            return
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def list_directory(self, path: object) -> None:  # type: ignore[override]
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Ranges(_Handler):
    ranges = True


@contextmanager
def served(folder: Path, ranges: bool) -> Iterator[str]:
    """The server's address."""
    handler = partial(_Ranges if ranges else _Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
