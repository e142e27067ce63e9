"""The page of training runs: losses by term, validation, optimiser, speed and memory, texts, figures and settings.

The same files give the same bytes. Plots are there without scripts; the script reads values out and hides runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from teacher_cache.pages.frame import render_page
from teacher_cache.pages.page_text import shown_text
from teacher_cache.pages.svg_parts import Figure
from teacher_cache.user_file import write_whole
from trainer.run_report.envelopes import Envelope, envelope
from trainer.run_report.run_facts import (
    MOST_PROMPTS,
    continuations,
    figure_rows,
    figures,
    in_words,
    names_of,
    settings_rows,
    state,
)
from trainer.run_report.run_metrics import SECTIONS, Metric, plotted_metrics
from trainer.run_report.run_plots import FRAME, curves
from trainer.run_report.run_reading import ReadRun, read_run

HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "page.js")
MOST_BYTES = 2_000_000
MOST_RUNS = 8  # as many colours can be told apart
LIMITS = ((400, 16), (250, 8), (120, 4), (60, 2), (30, 1))  # points of a curve, prompts: the most that fit


def report_runs(urls: Sequence[str], out: Path) -> dict[str, Any]:
    """Write the page of these runs to ``out``; returns what it says of them in numbers. Raises UserError."""
    if len(urls) > MOST_RUNS:
        raise UserError(f"{len(urls)} runs: a page has room for {MOST_RUNS}; name fewer")
    runs = [read_run(url) for url in dict.fromkeys(urls)]
    page = runs_page(runs)
    write_whole(out, page)
    differing, _ = settings_rows(runs) if len(runs) > 1 else ([], [])
    return {
        "page": str(out),
        "bytes": len(page),
        "runs": {run.url: {"state": state(run), **figures(run)} for run in runs},
        "differences": {row.name: list(row.cells) for row in differing},
    }


def runs_page(runs: Sequence[ReadRun]) -> bytes:
    """The HTML of at most ``MOST_RUNS`` runs: UTF-8, at most ``MOST_BYTES``. Raises UserError if it has no room."""
    metrics, left_out = plotted_metrics(runs)
    for most_points, most_prompts in LIMITS:
        page = _render(runs, metrics, left_out, most_points, most_prompts)
        if len(page) <= MOST_BYTES:
            return page
    raise UserError(f"the page would have {len(page):,} bytes, at most {MOST_BYTES:,} are wanted; name fewer runs")


def _render(
    runs: Sequence[ReadRun], metrics: Sequence[Metric], left_out: int, most_points: int, most_prompts: int
) -> bytes:
    first = min(int(each.steps[0]) for metric in metrics for each in metric.by_run.values()) if metrics else 0
    last = max(run.last_step for run in runs)
    first = 0 if first <= last / 10 else first
    names = names_of(runs)
    data = PageData(first, [run.last_step for run in runs], names)
    sections: dict[str, list[tuple[int, Figure]]] = {}
    for metric in metrics:
        found = {number: envelope(each, first, last, most_points) for number, each in metric.by_run.items()}
        title = shown_text(metric.title)
        figure = Figure(title, curves(title, metric.unit, found, (first, last)), _caption(metric, found, len(runs)))
        sections.setdefault(metric.section, []).append((data.add(metric, found), figure))
    texts, texts_left_out = continuations(runs, min(most_prompts, MOST_PROMPTS))
    differing, same = settings_rows(runs)
    return render_page(
        HERE,
        SCRIPTS,
        data.tree(),
        title=names[0] if len(runs) == 1 else f"{len(runs)} training runs",
        kicker="Training run" if len(runs) == 1 else "Training runs",
        lead=state(runs[0]) if len(runs) == 1 else "Overlaid, on the same axes.",
        names=list(enumerate(names, 1)),
        several=len(runs) > 1,
        key_figures=_key_figures(runs),
        notes=_notes(runs, names, data.downsampled, most_points, left_out),
        sections=[(name, sections[name]) for name in SECTIONS if name in sections],
        first=first,
        last=last,
        figures=figure_rows(runs),
        texts=texts,
        texts_left_out=texts_left_out,
        differing=differing,
        same=same,
        footer="Written by train-student report from metrics.jsonl, summary.json, run.json and samples.jsonl.",
    )


class PageData:
    """What the script reads out: for each plot the points of each run, rounded; steps that are the same once."""

    def __init__(self, first: int, ends: Sequence[int], names: Sequence[str]) -> None:
        """ends: last step of each run."""
        self.first, self.ends, self.names = first, ends, names
        self.downsampled = False
        self._steps: dict[tuple[int, ...], int] = {}
        self._plots: list[dict[str, Any]] = []

    def add(self, metric: Metric, found: dict[int, Envelope]) -> int:
        """Add a plot; returns its number."""
        curves_of = {}
        for number, each in found.items():
            place = self._steps.setdefault(tuple(each.steps.tolist()), len(self._steps))
            curves_of[number] = [place, _rounded(each.means)]
            if not each.is_exact:
                self.downsampled = True
                curves_of[number] += [_rounded(each.lows), _rounded(each.highs)]
        self._plots.append({"unit": metric.unit, "runs": curves_of})
        return len(self._plots) - 1

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        frame = {"left": FRAME.left, "width": FRAME.width - FRAME.left - FRAME.right}
        return {
            "first": self.first,
            "last": max(self.ends),
            "ends": self.ends,
            "frame": frame,
            "names": self.names,
            "steps": list(map(list, self._steps)),
            "plots": self._plots,
        }


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def _caption(metric: Metric, found: dict[int, Envelope], n_runs: int) -> str:
    """The last values of a plot."""
    unit = f" {metric.unit}" if metric.unit else ""
    last = [(number, in_words(metric.name, float(metric.by_run[number].values[-1]))) for number in found]
    if n_runs == 1:
        return f"last: {last[0][1]}{unit}"
    return "last: " + " · ".join(f"{number}: {value}" for number, value in last) + unit


def _key_figures(runs: Sequence[ReadRun]) -> list[tuple[str, str]]:
    if len(runs) > 1:
        return [(f"{len(runs)}", "runs"), (f"{max(run.last_step for run in runs):,}", "steps at most")]
    found = figures(runs[0])
    shown = {
        "steps": "steps",
        "loss": "loss",
        "lowest validation KL": "lowest validation KL",
        "tokens per second, median": "tokens/s",
        "data wait share, median": "waiting for data",
        "peak memory, bytes": "peak memory",
    }
    values = [(found[name], name, what) for name, what in shown.items()]
    return [(in_words(name, value), what) for value, name, what in values if value is not None]


def _notes(
    runs: Sequence[ReadRun], names: Sequence[str], downsampled: bool, most_points: int, left_out: int
) -> list[str]:
    found = [
        f"Curves with more than {most_points} values are drawn through means over {most_points} stretches of steps; "
        "the band behind reaches from the lowest to the highest value of each stretch, so that no spike is lost."
        if downsampled
        else "Every value that was logged is drawn."
    ]
    if left_out:
        found.append(f"{left_out} more metrics have no plot; they are in metrics.jsonl.")
    for run, name in zip(runs, names, strict=True):
        if run.unreadable:
            lines = "line" if run.unreadable == 1 else "lines"
            found.append(f"{name}: {run.unreadable:,} {lines} of metrics.jsonl could not be read and are left out.")
        if run.record is None:
            found.append(f"{name}: no readable run.json, so its settings are unknown.")
    return found
