"""Figures, settings and texts of runs as rows of tables. Everything comes from files that may be of others."""

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from schemas.train_config import TrainConfig
from teacher_cache.pages.page_text import shown_text
from trainer.loggers.run_logger import flattened
from trainer.run_report.run_reading import ReadRun, finite, tokens_per_second

MOST_VALUE, MOST_SETTINGS = 120, 200
MOST_PROMPTS, MOST_TEXT, MOST_LINES = 16, 700, 10


class Row(NamedTuple):
    """A row of a table with one cell for each run."""

    name: str
    cells: Sequence[str]


def names_of(runs: Sequence[ReadRun]) -> list[str]:
    """Short names of runs: the last part of where they are, with as many before as tell them apart."""
    parts = [PurePath(run.url.rstrip("/")).parts or (run.url,) for run in runs]
    for depth in range(1, 12):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return [shown_text(name) for name in names]


def state(run: ReadRun) -> str:
    """How far a run is, in words."""
    steps, planned = run.last_step, planned_steps(run)
    of = f"{steps:,}" if planned is None else f"{steps:,} of {planned:,}"
    ended = run.summary.get("ended")
    if isinstance(ended, str) and (finite(run.summary.get("steps")) or 0) >= steps:
        return f"{shown_text(ended, 30)} at step {of}"
    return f"going on or killed: step {of}"


def planned_steps(run: ReadRun) -> int | None:
    """Steps that the run was planned for."""
    if run.record is not None:
        return run.record.planned_steps
    planned = finite(run.summary.get("planned_steps"))
    return None if planned is None else int(planned)


def figures(run: ReadRun) -> dict[str, float | None]:
    """Final figures of a run, by name; None where it has none."""
    speed, best = tokens_per_second(run), run.series.get("eval_kl")
    wait, gpu = run.series.get("data_wait_share"), run.series.get("peak_gpu_memory_bytes")
    memory = gpu or run.series.get("peak_memory_bytes")
    terms = [name for name in run.series if f"{name}_weight" in run.series]
    return {
        "steps": run.last_step,
        "tokens": run.last("tokens"),
        "loss": run.last("loss"),
        **{f"loss term {name}": run.last(name) for name in terms},
        "validation KL": run.last("eval_kl"),
        "lowest validation KL": None if best is None else float(best.values.min()),
        "tokens per second, median": None if speed is None else _median(speed.values),
        "data wait share, median": None if wait is None else _median(wait.values),
        "peak memory, bytes": None if memory is None else float(memory.values.max()),
        "parameters": None if run.record is None else run.record.parameters,
    }


def figure_rows(runs: Sequence[ReadRun]) -> list[Row]:
    """The table of final figures."""
    of_runs = [figures(run) for run in runs]
    names = dict.fromkeys(name for found in of_runs for name in found)
    rows = [Row("state", [state(run) for run in runs])]
    for name in names:
        values = [found.get(name) for found in of_runs]
        if any(value is not None for value in values):
            rows.append(Row(shown_text(name), [in_words(name, value) for value in values]))
    return rows


def in_words(name: str, value: float | None) -> str:
    """A figure with a unit that suits it."""
    if value is None:
        return "–"
    if name.endswith(", bytes"):
        return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"
    if name.startswith("data wait share"):
        return f"{100 * value:.2g} %"
    whole = abs(value) < 1e15 and (value == int(value) or abs(value) >= 10_000)
    return f"{value:,.0f}" if whole else f"{value:,.4g}"


def settings_rows(runs: Sequence[ReadRun]) -> tuple[list[Row], list[Row]]:
    """Settings in which the runs differ (of one run: from the defaults), and all others."""
    known = [{} if run.record is None else flattened(run.record.config) for run in runs]
    keys = list(dict.fromkeys(key for each in known for key in each))[:MOST_SETTINGS]
    differing: list[Row] = []
    same: list[Row] = []
    defaults = _defaults()
    for key in keys:
        values = [json.dumps(each[key], ensure_ascii=False) if key in each else "–" for each in known]
        row = Row(shown_text(key), [shown_text(value, MOST_VALUE) for value in values])
        is_own = len(set(values)) > 1 if len(runs) > 1 else values[0] != defaults.get(key)
        (differing if is_own else same).append(row)
    return differing, same


def _defaults() -> dict[str, str]:
    """Defaults of all settings that have one, as JSON by dotted key."""
    tree = TrainConfig.model_validate({"data": {"cache": "-"}, "student": {"checkpoint": "-"}, "output": "-"})
    return {
        key: json.dumps(value, ensure_ascii=False) for key, value in flattened(tree.model_dump(mode="json")).items()
    }


class Continued(NamedTuple):
    """A prompt, and what runs continued it with."""

    prompt: str
    by_run: Sequence[tuple[int, Sequence[tuple[str, str]]]]  # run's number; (step in words, text), first and last


def continuations(runs: Sequence[ReadRun], most: int = MOST_PROMPTS) -> tuple[list[Continued], int]:
    """The first prompts with each run's continuations before and after, and the number of prompts left out."""
    by_prompt: dict[str, dict[int, dict[int, str]]] = {}
    for number, run in enumerate(runs, 1):
        for line in run.samples:
            by_prompt.setdefault(line["prompt"], {}).setdefault(number, {})[line["step"]] = line["text"]
    shown = []
    for prompt, of_runs in list(by_prompt.items())[:most]:
        found = []
        for number, by_step in of_runs.items():
            ends = sorted({min(by_step), max(by_step)})
            found.append((number, [(_when(step), _lines(by_step[step])) for step in ends]))
        shown.append(Continued(shown_text(prompt, MOST_TEXT), found))
    return shown, max(0, len(by_prompt) - most)


def _lines(text: str) -> str:
    """The first lines of a text, with their ends marked: students may write nothing else."""
    lines = shown_text(text, MOST_TEXT).split("\n")
    return "↵\n".join(lines[:MOST_LINES]) + (" …" if len(lines) > MOST_LINES else "")


def _when(step: int) -> str:
    return "before training" if step == 0 else f"step {step:,}"


def _median(values: Any) -> float:
    ordered = sorted(values.tolist())
    return float(ordered[len(ordered) // 2])
