"""``make gpu-check``: run every part in a process with a time limit, print a table, and write JSON.

Where torch sees no GPU the parts run small on the CPU, and what they cannot do there is named. Exit status 3 if a bar
is missed or a part fails or is stopped.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_check.device_size import CPU, GPU
from benchmarks.gpu_check.reporting import SKIPPED, WORK, Report, read_rows
from benchmarks.support.results import Row, exit_status, write_results

OUTPUT = WORK / "gpu_check.json"


class Part(NamedTuple):
    """A module of this package, and the seconds it may take."""

    module: str
    seconds: int


PARTS = {
    "installation": Part("installation", 30),
    "kernels": Part("kernels", 100),
    "capture": Part("capture_hooks", 60),
    "caches": Part("device_caches", 50),
    "training": Part("student_steps", 140),
    "head": Part("head_and_step", 60),
    "vllm": Part("vllm_capture", 240),
}
MAX_SECONDS = 480  # of all parts: those that are left when they are used up are skipped


def main() -> int:
    """Run the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=str(__doc__).splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file to write (default: {OUTPUT})")
    parser.add_argument("--run-here", type=Path, help=argparse.SUPPRESS)  # one part, in this process: its rows
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part named {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if arguments.run_here is not None:
        run_here(arguments.parts[0], arguments.run_here)
        return 0
    rows, seconds = run_parts(arguments.parts or list(PARTS))
    write_results("gpu_check", title(), rows, {"seconds": seconds}, arguments.output)
    return exit_status(rows)


def run_parts(names: list[str]) -> tuple[list[Row], dict[str, float]]:
    """The rows of all parts, and the seconds of each."""
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for name in names:
        print(f"── {name} ──", flush=True)
        started = time.monotonic()
        rows += run_part(name, min(PARTS[name].seconds, MAX_SECONDS - sum(seconds.values())))
        seconds[name] = round(time.monotonic() - started, 1)
    return rows, seconds


def run_part(name: str, limit: float) -> list[Row]:
    """The rows of one part, and one of how it ended unless it ended well."""
    if limit <= 0:
        return [Row(f"{name}: the time of all parts, {MAX_SECONDS} s, is used up", SKIPPED)]
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", name, "--run-here", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        stderr = process.communicate(timeout=limit)[1]
        ended = "" if process.returncode == 0 else _last_line(stderr) or f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        ended = f"was stopped after {limit:.0f} s"
    rows = read_rows(path)
    if ended:
        rows.append(Row(f"{name}: {ended}", "failed", bar="done", holds=False))
    return rows


def run_here(name: str, path: Path) -> None:
    """Run one part in this process."""
    import torch

    from teacher_cache.logs import configure_logging

    configure_logging(verbose=False)
    size = GPU if torch.cuda.is_available() else CPU
    import_module(f"benchmarks.gpu_check.{PARTS[name].module}").measure(size, Report(path))


def title() -> str:
    """Names the device."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU: run small on the CPU"
    return f"GPU check ({device})"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
