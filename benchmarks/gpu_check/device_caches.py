"""Part 4: the caching job with the transformers engine: what a GPU stores against what a CPU stores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.device_size import DeviceSize
from benchmarks.gpu_check.random_models import qwen3_config, write_model
from benchmarks.gpu_check.reporting import WORK, Report
from benchmarks.support.common import as_config
from benchmarks.support.corpus import standard_library, write_code
from benchmarks.support.results import Row, at_least, at_most
from teacher_cache import job
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.hidden.capture import to_floats

CHARACTERS = 4_000
MAX_LOGPROB_DIFFERENCE = 1e-3  # nats
MAX_HIDDEN_DIFFERENCE = 0.01  # relative; a rounding that falls to the other side is one of 127 steps
MIN_SAME_DRAWS = 0.98
CAPTURE: dict[str, Any] = {
    "logits": {"k": 16},
    "draws": {"n": 16},
    "hidden": {"positions": {"every": 8}},
    "attention": {"positions": {"every": 8}},
}


def cache_folder(device: str) -> Path:
    """Where the cache made on a device is kept for the parts that follow."""
    return WORK / f"cache-{device}"


def measure(size: DeviceSize, report: Report) -> None:
    """Make a cache on the CPU and one on the GPU, and compare their values."""
    for folder in ("teacher", "corpus", "cache-cpu", "cache-cuda"):
        shutil.rmtree(WORK / folder, ignore_errors=True)
    write_model(WORK / "teacher", qwen3_config(size.teacher), seed=0)
    write_code(WORK / "corpus", standard_library()[: size.corpus_modules], CHARACTERS)
    for device in dict.fromkeys(("cpu", size.device)):
        summary = job.run(as_config(_settings(size, device)))
        what = f"caching job on {device}: {summary.tokens:,} tokens of a small teacher, with all signals"
        report.add(Row(what, summary.tokens_per_second, "tok/s"))
    if size.device == "cpu":
        report.skip("GPU cache against CPU cache", "there is no GPU")
        return
    _compare(CacheReader(str(cache_folder("cpu"))), CacheReader(str(cache_folder(size.device))), size, report)


def _settings(size: DeviceSize, device: str) -> dict[str, Any]:
    return {
        "teacher": {"path": str(WORK / "teacher"), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": device, "self_check": "off"},
        "corpus": {
            "sources": [{"path": str(WORK / "corpus"), "format": "text", "pattern": "*.py", "layer": "code"}],
            "max_tokens": size.max_tokens,
        },
        "capture": CAPTURE,
        "output": {"path": str(cache_folder(device))},
    }


def _compare(here: CacheReader, there: CacheReader, size: DeviceSize, report: Report) -> None:
    """Every sample of two caches of the same text."""
    logprobs, swapped, draws, hidden = 0.0, 0, [], 0.0
    settings = as_config(_settings(size, "cpu")).capture.hidden
    assert settings is not None
    for number in range(len(here)):
        one, other = here.read_logits(number), there.read_logits(number)
        logprobs = max(logprobs, float(np.abs(one.logprobs - other.logprobs).max()))
        swapped += int((_differs(one.ids, other.ids, one.logprobs)).sum())
        draws.append((here.read_draws(number).ids == there.read_draws(number).ids).mean())
        states = [to_floats(reader.read_hidden(number), settings) for reader in (here, there)]
        hidden = max(hidden, ((states[0] - states[1]).norm() / states[0].norm()).item())
    report.add(at_most("GPU against CPU: log-probabilities by rank", logprobs, "nat", MAX_LOGPROB_DIFFERENCE))
    report.add(at_most("GPU against CPU: ids that differ and are no tie", swapped, "", 0))
    report.add(at_least("GPU against CPU: equal draws", float(np.mean(draws)), "share", MIN_SAME_DRAWS))
    report.add(at_most("GPU against CPU: hidden states", hidden, "relative", MAX_HIDDEN_DIFFERENCE))


def _differs(ids_PK: np.ndarray, others_PK: np.ndarray, logprobs_PK: np.ndarray) -> np.ndarray:
    """Where ids differ though no neighbour is as probable. The last rank may tie with one that is not stored."""
    gaps = np.abs(np.diff(logprobs_PK, axis=1))
    before = np.pad(gaps, ((0, 0), (1, 0)), constant_values=np.inf)
    after = np.pad(gaps, ((0, 0), (0, 1)), constant_values=0.0)
    return (ids_PK != others_PK) & (np.minimum(before, after) > 2 * MAX_LOGPROB_DIFFERENCE)
