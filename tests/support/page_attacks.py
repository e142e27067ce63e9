"""Hostile texts in a page, and code that was injected into its file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, expect

from support.chromium import opened

ATTACKS = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "</ScRiPt ><svg onload=window.hacked=1>",
    "<!--<script>",
    "{{7*7}}{% for x in y %}",
    "\"'><b onclick=window.hacked=1>",
    "&lt;b&gt; &amp; \u2028\u2029 \\u003c",
    "${window.hacked=1}",
    "\u202etxet desrever\u202c",
)


def check_policy(browser: Browser, file: Path, folder: Path, shown: str) -> None:
    """Script, style and image injected into a page are neither run nor fetched; ``shown``: selector of a part of it."""
    with asked_server() as (address, asked):
        page = file.read_text("utf-8").replace(
            "<main>",
            f'<main><script>window.hacked=1</script><img src="{address}/x.png" onerror="window.hacked=2">'
            f'<p id="styled" style="color: rgb(1, 2, 3)">x</p><link rel="stylesheet" href="{address}/x.css">'
            f'<iframe src="{address}/frame"></iframe><script src="{address}/x.js"></script>',
        )
        (folder / "injected.html").write_text(page, "utf-8")
        with opened(browser, folder / "injected.html") as found:
            expect(found.page.locator(shown)).to_be_visible()
            assert found.page.evaluate("window.hacked") is None
            assert found.page.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"
            found.page.wait_for_load_state("networkidle")
            violated = {directive.partition("-")[0] for directive in found.page.evaluate("window.violations")}
            assert violated == {"script", "style", "img", "frame"}
            assert asked == []


@contextmanager
def asked_server() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server's address, and the requests it received."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()
