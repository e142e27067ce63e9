"""``summary.json``: results, speed and peak memory. Memory is this process's."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from teacher_cache.process import peak_memory_bytes
from trainer.run.output_files import replace_text


class Clock:
    """Wall-clock seconds of the training loop."""

    def __init__(self) -> None:
        self.started = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """Start; call once models and data are loaded."""
        self.started = time.perf_counter()

    def stop(self, less: float) -> None:
        """Stop, and subtract ``less`` seconds (validation)."""
        self.seconds = time.perf_counter() - self.started - less


def cost(tokens: int, seconds: float) -> dict[str, Any]:
    """Return speed (``tokens`` in ``seconds``), this process's peak memory in bytes, device and versions."""
    on_gpu = torch.cuda.is_available()
    return {
        "tokens_this_run": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds > 0 else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": device_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def device_name() -> str:
    """Name of the device that this process trains on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def peak_memory() -> dict[str, int]:
    """Peak memory so far, bytes, as metrics: of this process, and of tensors on its GPU if it has one."""
    peak = {"peak_memory_bytes": peak_memory_bytes()}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON, atomically."""
    replace_text(path, json.dumps(value, indent=1) + "\n")
