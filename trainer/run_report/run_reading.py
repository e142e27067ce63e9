"""Read what a run wrote, from a folder or a store, while it goes on or after it was killed. Nothing in it is trusted.

Lines that cannot be read, as the last one of a killed run, are counted and left out. Where steps go back, as after a
resume whose undone lines are still there, the later lines win and what they undo is dropped.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.run_file import RunFile
from trainer.run.output_names import MAX_BYTES, METRICS, RUN_FILE, SAMPLES_FILE, SUMMARY
from trainer.run.run_store import RunStore

MOST_METRICS_BYTES, MOST_SAMPLES_BYTES = 1 << 30, 64 << 20
MOST_NAMES, MOST_STEP = 200, 2**53  # metrics that are read; JSON's largest exact integer
MOST_NAME = 200  # characters


@dataclass(frozen=True)
class Series:
    """One metric: its values at rising steps."""

    steps: np.ndarray  # int64 [N]
    values: np.ndarray  # float64 [N], finite


@dataclass(frozen=True)
class ReadRun:
    """What was found of a run."""

    url: str
    series: dict[str, Series]
    samples: list[dict[str, Any]] = field(default_factory=list)  # with str "prompt" and "text", int "step"
    summary: dict[str, Any] = field(default_factory=dict)  # empty: none
    record: RunFile | None = None
    unreadable: int = 0  # lines of metrics

    @property
    def last_step(self) -> int:
        """The last step with a line of metrics; 0 without."""
        return max((int(each.steps[-1]) for each in self.series.values()), default=0)

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        found = self.series.get(name)
        return None if found is None else float(found.values[-1])


def read_run(url: str) -> ReadRun:
    """Read the run whose output is the folder or URL ``url``. Raises UserError if there are no metrics."""
    store = RunStore(url)
    metrics = store.read_if_there(METRICS, MOST_METRICS_BYTES)
    if not metrics:
        raise UserError(f"{url}: has no {METRICS}, or an empty one: name the output of a run that has logged a step")
    unreadable = [0]
    series = read_series(_objects(metrics, unreadable))
    if not series:
        raise UserError(f"{url}: {METRICS} has no line of metrics; name the output of a run that has logged a step")
    found = store.read_if_there(RUN_FILE, MAX_BYTES)
    record = _record(found, store.where(RUN_FILE)) if found else None
    samples = list(_objects(store.read_if_there(SAMPLES_FILE, MOST_SAMPLES_BYTES), [0]))
    summary = next(_objects(store.read_if_there(SUMMARY, MAX_BYTES).replace(b"\n", b" "), [0]), {})
    return ReadRun(url, series, [each for each in samples if _is_sample(each)], summary, record, unreadable[0])


def read_series(lines: Iterable[dict[str, Any]]) -> dict[str, Series]:
    """Series of all metrics in lines of ``metrics.jsonl``."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    last = 0
    for line in lines:
        step = line.pop("step", None)
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MOST_STEP:
            continue
        if step < last:  # what follows was trained again
            for name, of_name in steps.items():
                _drop_from(step, of_name, values[name])
        last = step
        for name, value in line.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
                continue
            if name not in steps:
                if len(steps) >= MOST_NAMES or len(name) > MOST_NAME:
                    continue
                steps[name], values[name] = [], []
            _drop_from(step, steps[name], values[name])
            steps[name].append(step)
            values[name].append(float(value))
    return {
        name: Series(np.array(of_name, np.int64), np.array(values[name])) for name, of_name in steps.items() if of_name
    }


def tokens_per_second(run: ReadRun) -> Series | None:
    """Speed of training between two lines: tokens by the time that steps took; None if the run did not log them."""
    tokens, seconds = run.series.get("tokens"), run.series.get("step_seconds")
    if tokens is None or seconds is None or not np.array_equal(tokens.steps, seconds.steps):
        return None
    done = np.diff(tokens.values, prepend=0.0)
    taken = np.diff(tokens.steps, prepend=0) * seconds.values
    valid = (taken > 0) & (done >= 0)
    return Series(tokens.steps[valid], done[valid] / taken[valid]) if valid.any() else None


def _drop_from(step: int, steps: list[int], values: list[float]) -> None:
    while steps and steps[-1] >= step:
        steps.pop()
        values.pop()


def _objects(data: bytes, unreadable: list[int]) -> Iterator[dict[str, Any]]:
    """The JSON objects of lines; adds the number of other lines to ``unreadable``."""
    for line in data.split(b"\n"):
        try:
            found = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            if found:
                yield found
        else:
            unreadable[0] += 1


def _record(data: bytes, where: str) -> RunFile | None:
    try:
        return parse_json(RunFile, data, where)
    except UserError:
        return None  # the page says that settings are unknown


def _is_sample(line: dict[str, Any]) -> bool:
    return isinstance(line.get("step"), int) and all(isinstance(line.get(name), str) for name in ("prompt", "text"))


def finite(value: object) -> float | None:
    """A number of an untrusted file; None if it is not one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
