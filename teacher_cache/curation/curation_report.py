"""The report of a curation, ``report.json`` and ``report.html``: what each step removed, with samples."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from schemas.curated_manifest import CuratedManifest
from teacher_cache.curation.step_tally import StepTally
from teacher_cache.pages.page_policy import page_policy
from teacher_cache.shards.storage import Storage

JSON, HTML = "report.json", "report.html"
TEMPLATE, STYLE = "report.html.jinja", "report.css"


def write_report(storage: Storage, manifest: CuratedManifest, tallies: Sequence[StepTally]) -> None:
    """Write both files. Equal curations give equal bytes."""
    report = report_of(manifest, tallies)
    storage.write(JSON, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    storage.write(HTML, page_of(report).encode())


def report_of(manifest: CuratedManifest, tallies: Sequence[StepTally]) -> dict[str, Any]:
    """The report as plain data."""
    settings = {f"steps.{index}": step.model_dump(mode="json") for index, step in enumerate(manifest.steps)}
    return {
        "sources": [source.name for source in manifest.sources],
        "layers": {layer: amount.model_dump() for layer, amount in manifest.layers.items()},
        "steps": [
            {
                **tally.counts.model_dump(mode="json"),
                "settings": settings.get(tally.counts.key, {}),
                "samples": [sample.model_dump() for sample in tally.samples],
            }
            for tally in tallies
        ],
    }


def page_of(report: dict[str, Any]) -> str:
    """The report as a page of its own, all texts escaped: nothing in it is loaded or run."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    style = folder.joinpath(STYLE).read_text(encoding="utf-8")
    template = environment.from_string(folder.joinpath(TEMPLATE).read_text(encoding="utf-8"))
    tokens = max(1, sum(layer["tokens"] for layer in report["layers"].values()))
    return template.render(report=report, style=style, policy=page_policy(style, "", "img-src data:"), tokens=tokens)
