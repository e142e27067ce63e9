"""``summary.json``: what a run did and what it cost. Memory and speed are those of this process."""

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
    """Measures the training loop in wall-clock seconds."""

    def __init__(self) -> None:
        self.started = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """Start: models and data are loaded."""
        self.started = time.perf_counter()

    def stop(self, less: float) -> None:
        """Stop, leaving out ``less`` seconds that were spent otherwise (validation)."""
        self.seconds = time.perf_counter() - self.started - less


def cost(tokens: int, seconds: float) -> dict[str, Any]:
    """Speed and peak memory of this process, in bytes; ``tokens`` were trained on in ``seconds``."""
    on_gpu = torch.cuda.is_available()
    return {
        "tokens_this_run": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds > 0 else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON, by rename."""
    replace_text(path, json.dumps(value, indent=1) + "\n")
