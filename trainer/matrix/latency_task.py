"""Latency and throughput in vLLM: ``vllm bench latency``, a process for each batch size."""

import importlib.util
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.errors import MachineError, UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import Measure
from schemas.matrix_config import LatencyTask
from schemas.regular_files import read_file
from teacher_cache.child_process import ends_with
from teacher_cache.process import usable_cores
from trainer.matrix.digests_of_cell import digest_of
from trainer.matrix.task_kind import GET_VLLM, CellResult, TaskKind

RANDOM_IDS = 10_000  # vLLM's random prompts are of token ids below this
COMMAND = (sys.executable, "-m", "trainer.matrix.vllm_command", "bench", "latency")
MAX_BYTES = 1 << 20


def check(_: LatencyTask) -> None:
    """Raise UserError if vLLM is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"vllm: not installed, a latency task needs it; run: {GET_VLLM}")


def data(_: LatencyTask) -> dict[str, str]:
    """The machine, which decides speed."""
    return {"machine": digest_of(machine())}


def machine() -> dict[str, str | int]:
    """Processor, usable cores and GPUs."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpus = ""
    return {"processor": found[1] if found else platform.processor(), "cores": usable_cores(), "GPUs": gpus}


def run(task: LatencyTask, model: MatrixModel, backends: Backends) -> CellResult:
    """Measure a model. The first measure is the 50th percentile at the smallest batch."""
    _check_model(task, model)
    measures: list[Measure] = []
    for size in sorted({*task.batch_sizes}):
        measures += _measures(task, size, _latencies(task, model, backends, size))
    return CellResult(measures)


def _check_model(task: LatencyTask, model: MatrixModel) -> None:
    from trainer.student.build import load_model_config

    config = load_model_config(Path(model.folder), f"models: {model.name}", model.trust_remote_code).get_text_config()
    if config.vocab_size < RANDOM_IDS:
        raise UserError(
            f"{model.folder}: {config.vocab_size} tokens; vllm bench draws prompts of token ids below {RANDOM_IDS:,}, "
            "so it cannot measure a model with fewer; leave this model out of the latency task"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and task.input_tokens + task.output_tokens > longest:
        raise UserError(
            f"{model.folder}: reads at most {longest} tokens, input_tokens + output_tokens are "
            f"{task.input_tokens + task.output_tokens}; lower them"
        )


def _latencies(task: LatencyTask, model: MatrixModel, backends: Backends, size: int) -> list[float]:
    """Seconds of each batch that counts."""
    with TemporaryDirectory(prefix="latency-") as folder:
        result = Path(folder) / "latency.json"
        process = subprocess.Popen(
            [*COMMAND, *_options(task, model, backends, size, result)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"},
            process_group=0,
            preexec_fn=ends_with(os.getpid()),
        )
        try:
            _, said = process.communicate(timeout=60 * task.limit_minutes)
        except subprocess.TimeoutExpired:
            raise MachineError(
                f"batch size {size}: vllm bench took longer than limit_minutes, {task.limit_minutes:g}; raise it, or "
                "lower repeats or output_tokens"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            lines = [line for line in said.splitlines() if line.strip()]
            raise UserError(
                f"batch size {size}: vllm bench ended with {process.returncode}: {(lines or [''])[-1][:300]}"
            )
        return _parsed(read_file(result, MAX_BYTES), task.repeats)


def _options(task: LatencyTask, model: MatrixModel, backends: Backends, size: int, result: Path) -> list[str]:
    settings = backends.vllm
    values = {
        "model": model.folder,
        "batch-size": size,
        "input-len": task.input_tokens,
        "output-len": task.output_tokens,
        "num-iters-warmup": task.warm_up,
        "num-iters": task.repeats,
        "output-json": result,
        "dtype": settings.dtype,
        "max-model-len": settings.max_length or task.input_tokens + task.output_tokens,
        "tensor-parallel-size": settings.tensor_parallel,
    }
    if machine()["GPUs"]:
        values["gpu-memory-utilization"] = settings.gpu_memory_utilization
    else:
        values["kv-cache-memory-bytes"] = settings.cpu_kv_cache_gib << 30
    options = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    flags = [("--trust-remote-code", model.trust_remote_code), ("--enforce-eager", settings.eager)]
    return options + [flag for flag, wanted in flags if wanted]


def _parsed(text: bytes, repeats: int) -> list[float]:
    """Raises UserError unless these are as many positive numbers as there were batches."""
    try:
        found = [float(value) for value in json.loads(text)["latencies"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"vllm bench wrote no latencies ({error}); see docs/evaluation.md for the version") from None
    if len(found) != repeats or not all(math.isfinite(value) and value > 0 for value in found):
        raise UserError(f"vllm bench wrote {len(found)} latencies, wanted {repeats} positive ones")
    return found


def _measures(task: LatencyTask, size: int, seconds: list[float]) -> list[Measure]:
    middle, high = percentile(seconds, 50), percentile(seconds, 95)
    at = f"batch {size}"
    return [
        Measure(name=f"seconds p50, {at}", value=middle, unit="s", higher_is_better=False),
        Measure(name=f"seconds p95, {at}", value=high, unit="s", higher_is_better=False),
        Measure(
            name=f"tokens per second, {at}",
            value=size * task.output_tokens / statistics.fmean(seconds),
            unit="tokens/s",
        ),
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


LATENCY = TaskKind(check, data, run, lambda _: ("vllm", "torch"), lambda _: ("vllm",), measures="speed")
