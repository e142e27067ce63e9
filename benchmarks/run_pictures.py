"""``python -m benchmarks.run_pictures``: screenshots of ``train-student report`` for the docs, light and dark.

A real teacher reads a little Python with the transformers engine; two students of two of its layers train on its cache
for a few minutes, at different learning rates, and continue a few prompts. Everything is kept in ``runs/run-pictures``
and reused.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.report_pictures import PICTURES
from benchmarks.support.corpus import hold_out, standard_library, write_code
from benchmarks.support.installed import run_installed
from benchmarks.support.pictures import save_part
from benchmarks.support.students import CACHE_CONFIG, TRAIN_CONFIG, options
from schemas.errors import UserError
from tests.support.browser import NAMES, browser, find_chromium

FOLDER = Path("runs/run-pictures")
MODULES, STEPS = 16, 24
RATES = {"rate-3e-4": 3e-4, "rate-1e-3": 1e-3}
PROMPTS = ["import os\n\ndef read_lines(path):\n", "class Stack:\n    def __init__(self):\n"]
PARTS = {  # picture: scheme, page, first and next heading
    "run-report-light": ("light", "several.html", "header", "#section-2"),
    "run-report-dark": ("dark", "one.html", "header", "#section-2"),
    "run-report-texts": ("light", "several.html", "#final", "#settings"),
}


def main() -> None:
    """Write the pictures. Raises UserError without Chromium."""
    chromium = find_chromium()
    if chromium is None:
        raise UserError(f"none of {', '.join(NAMES)} is on PATH; apt-get install chromium")
    runs = train_examples()
    for name, shown in (("one.html", runs[:1]), ("several.html", runs)):
        run_installed("train-student", "report", *map(str, shown), "--out", str(FOLDER / name))
    with browser(chromium) as started:
        for part, (scheme, page, first, after) in PARTS.items():
            picture = PICTURES / f"{part}.png"
            _screenshot(started, FOLDER / page, scheme, first, after, picture)
            print(f"{picture}: {picture.stat().st_size:,} bytes")


def train_examples() -> list[Path]:
    """Train both students, unless that was done; returns their outputs."""
    teacher = make_teacher()
    write_code(FOLDER / "code", hold_out(standard_library())[0][:MODULES], 900)
    cache = FOLDER / "cache"
    caching = [
        f"teacher.path={teacher}",
        "engine={kind: transformers, device: cpu}",
        "capture={hidden: {layers: [0.25, 0.5, 0.75]}}",
        f"corpus.sources=[{{path: {FOLDER / 'code'}, format: text, pattern: '*.py', layer: code}}]",
        f"output.path={cache}",
    ]
    run_installed("teacher-cache", "run", CACHE_CONFIG, *options(caching))
    outputs = []
    for name, rate in RATES.items():
        output = FOLDER / name
        training = [
            f"data={{cache: {cache}, validation_fraction: 0.15}}",
            f"student={{teacher: {teacher}, from_layers: [0, 29]}}",
            "losses={lhsm: {}}",
            f"optimizer={{lr: {rate}, warmup_steps: 2}}",
            f"loop={{max_steps: {STEPS}, micro_batch_size: 1, validate_every: 6, save_every: {STEPS}}}",
            f"loop.samples={{prompts: {PROMPTS!r}, tokens: 24}}".replace("'", '"'),
            f"output={output}",
        ]
        run_installed("train-student", "run", TRAIN_CONFIG, *options(training))
        outputs.append(output)
    return outputs


def _screenshot(started: Any, file: Path, scheme: str, first: str, after: str, picture: Path) -> None:
    """Capture the page from one heading to the next, with values read out in the middle."""
    page = started.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    page.locator("#step").fill(str(STEPS // 2))
    page.evaluate("document.activeElement.blur()")
    top, bottom = (page.locator(place).first.bounding_box()["y"] for place in (first, after))
    save_part(page, picture, max(0, top - 10), bottom)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
