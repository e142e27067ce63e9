"""Running the project's installed commands as a user does, measuring seconds and peak memory."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.process import peak_memory_bytes


@dataclass(frozen=True)
class Finished:
    """A command that succeeded."""

    stdout: str
    seconds: float
    peak_memory_bytes: int  # resident set of the largest of its processes

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object that the command printed, possibly after lines from native libraries."""
        lines = self.stdout.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("{"))
        return json.loads("\n".join(lines[start:]))


def run_installed(command: str, *arguments: str | Path) -> Finished:
    """Run a console command of this interpreter's environment; its stderr goes to the terminal.

    Exits this process with a message when the command fails.
    """
    words = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    print(f"$ {' '.join([command, *words[1:]])}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{stdout}\nerror: {command} ended with exit status {process.returncode}")
    return Finished(stdout, time.perf_counter() - start, peak_memory_bytes(usage))
