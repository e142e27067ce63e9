"""The metrics that the page plots, by section, with names and units."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.run_report.run_reading import ReadRun, Series, tokens_per_second

GIB = 2.0**30
MOST_PLOTS = 60
NOT_PLOTTED = {"data_wait", "epoch", "rows", "tokens", "skipped_samples", "eval_tokens", "eval_rows", "eval_samples"}
KNOWN: dict[str, tuple[str, str, str]] = {  # metric: section, title, unit
    "loss": ("Losses", "Loss: the weighted sum of its terms", ""),
    "eval_kl": ("Validation", "KL to the teacher", "nats per token"),
    "eval_perplexity": ("Validation", "Perplexity", ""),
    "eval_bits_per_byte": ("Validation", "Bits per byte", "bits"),
    "learning_rate": ("Optimiser", "Learning rate", ""),
    "grad_norm": ("Optimiser", "Gradient norm, before clipping", ""),
    "tokens_per_second": ("Speed and memory", "Throughput", "tokens/s"),
    "step_seconds": ("Speed and memory", "Time of a step", "s"),
    "data_wait_share": ("Speed and memory", "Share of it that waits for data", ""),
    "peak_gpu_memory_bytes": ("Speed and memory", "Peak memory, GPU", "GiB"),
    "peak_memory_bytes": ("Speed and memory", "Peak memory, process", "GiB"),
}
SECTIONS = ("Losses", "Validation", "Optimiser", "Speed and memory", "Weights of terms", "Other metrics")


class Metric(NamedTuple):
    """What one plot shows."""

    name: str
    section: str
    title: str
    unit: str
    by_run: Mapping[int, Series]  # by the run's number, from 1


def plotted_metrics(runs: Sequence[ReadRun]) -> tuple[list[Metric], int]:
    """The metrics to plot, in the page's order, and the number left out beyond ``MOST_PLOTS``."""
    all_series = [series_of(run) for run in runs]
    names = list(dict.fromkeys([*KNOWN, *(name for series in all_series for name in series)]))
    terms = {name for name in names if f"{name}_weight" in names}
    found = []
    for name in names:
        by_run = {number: series[name] for number, series in enumerate(all_series, 1) if name in series}
        if by_run and name not in NOT_PLOTTED and not (name.endswith("_weighted") and name[:-9] in terms):
            found.append(Metric(name, *_described(name, terms), by_run))
    found.sort(key=lambda metric: SECTIONS.index(metric.section))
    constant = [metric for metric in found if metric.section == "Weights of terms" and _is_one(metric)]
    found = [metric for metric in found if metric not in constant]
    return found[:MOST_PLOTS], max(0, len(found) - MOST_PLOTS)


def series_of(run: ReadRun) -> dict[str, Series]:
    """A run's metrics, memory in GiB, with its speed."""
    speed = tokens_per_second(run)
    scaled = {
        name: Series(each.steps, each.values / GIB) if name.endswith("memory_bytes") else each
        for name, each in run.series.items()
    }
    return scaled if speed is None else scaled | {"tokens_per_second": speed}


def _described(name: str, terms: set[str]) -> tuple[str, str, str]:
    if name in KNOWN:
        return KNOWN[name]
    if name in terms:
        return "Losses", f"Term {name}", ""
    if name.endswith("_weight") and name[:-7] in terms:
        return "Weights of terms", f"Weight of {name[:-7]}", ""
    if name.endswith("_gradient_norm") and name[:-14] in terms:
        return "Optimiser", f"Gradient norm of {name[:-14]}", ""
    if name.startswith("eval_"):
        return "Validation", name[5:].replace("_", " ").capitalize(), ""
    return "Other metrics", name.replace("_", " ").capitalize(), ""


def _is_one(metric: Metric) -> bool:
    """Whether a weight is the same throughout, in all runs."""
    ends = {float(end(each.values)) for each in metric.by_run.values() for end in (np.min, np.max)}
    return len(ends) == 1
