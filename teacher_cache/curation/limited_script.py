"""Ask a script of ours in a process with limits: what exhausts or crashes it costs one answer.

The script reads a JSON value a line and writes one a line, after a first line once it is ready. What it is asked comes
from anyone.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from schemas.errors import MachineError

_CRASHES = {signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def answers(script: str, asked: Sequence[Any], task: str) -> list[Any]:
    """The answer to each of ``asked`` by the script at this path; None for those that ended its process.

    Raises MachineError, naming ``task``, if the process cannot run.
    """
    found: list[Any] = []
    while len(found) < len(asked):
        found += _some(script, asked[len(found) :], task)
    return found


def _some(script: str, asked: Sequence[Any], task: str) -> list[Any]:
    """The answers to the first ones, as many as one process can give: all, or up to one that ends it."""
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run([sys.executable, "-I", script], input=lines, capture_output=True, text=True, check=False)
    ready, *written = done.stdout.splitlines(keepends=True) or [""]
    found = [json.loads(line) for line in written if line.endswith("\n")]
    if len(found) == len(asked):
        return found
    if ready and -done.returncode in _CRASHES:
        return [*found, None]
    why = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    raise MachineError(f"{task}: the process ended after {len(found)} of {len(asked)}: {why}")
