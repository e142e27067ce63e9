"""``python -m benchmarks.evaluation_pictures``: screenshots of a matrix' page for the docs, light and dark.

The page is that of `make recipe`, or another one that is named.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.recipe import PAGE
from benchmarks.report_pictures import PICTURES
from benchmarks.support.pictures import save_part
from schemas.errors import UserError
from tests.support.browser import NAMES, browser, find_chromium

PARTS = {"verdicts": ("#verdicts", "#overview"), "pairs": ("#compared", "#cost")}  # name: first and next heading
HIGHEST = 1360  # pixels of a picture


def main() -> None:
    """Write the pictures. Raises UserError without Chromium or a page."""
    chromium, page = find_chromium(), Path(sys.argv[1] if len(sys.argv) > 1 else PAGE)
    if chromium is None:
        raise UserError(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium")
    if not page.is_file():
        raise UserError(f"{page}: no such file; run `make recipe` first, or name the page of another matrix")
    with browser(chromium) as started:
        for (part, (first, after)), scheme in zip(PARTS.items(), ("light", "dark"), strict=True):
            picture = PICTURES / f"evaluation-{part}.png"
            _screenshot(started, page, scheme, first, after, picture)
            print(f"{picture}: {picture.stat().st_size:,} bytes")


def _screenshot(started: Any, file: Path, scheme: str, first: str, after: str, picture: Path) -> None:
    """Capture the page from one heading to the next."""
    page = started.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page.set_default_timeout(600_000)
    page.goto(file.resolve().as_uri())
    top, bottom = (page.locator(heading).bounding_box()["y"] for heading in (first, after))
    save_part(page, picture, top, min(bottom, top + HIGHEST))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
