"""A worker of a fleet on Ray: an actor that runs the installed command, in the place that Ray has given it."""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from teacher_cache.child_process import ends_with, installed

LINES_KEPT = 40  # of what a command says, to find its error in


@dataclass(frozen=True)
class Ended:
    """How a worker's command ended."""

    status: int  # exit status; -n: ended by signal n
    said: str  # its error line, else its last line; "" if it said nothing


class RayWorker:
    """Runs one command at a time; ``stop`` may be called meanwhile, from another thread of the actor.

    A process of its own may crash or run out of memory without its actor, ends with it, and gets signals in its main
    thread, where a job listens for them; what it started ends with it. What it says goes to the actor's standard error,
    which Ray keeps on the node.
    """

    def __init__(self, folder: str) -> None:
        """``folder``: the working directory, which relative paths in settings start from."""
        self._folder = folder
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def node(self) -> str:
        """Name of the machine."""
        return socket.gethostname()

    def run(self, part: str, settings: str) -> Ended:
        """Run ``teacher-cache PART FILE --queue`` with these settings, as YAML, to its end."""
        if not Path(self._folder).is_dir():
            return Ended(
                2, f"error: {self._folder}: no such folder on {self.node()}; share it, or start in another one"
            )
        with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(settings)
            file.flush()
            self._running = subprocess.Popen(
                [installed("teacher-cache"), part, file.name, "--queue", "--json"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
                preexec_fn=ends_with(os.getpid()),
            )
            if self._stopped:  # meanwhile
                self._running.terminate()
            assert self._running.stderr is not None
            with ThreadPoolExecutor(1, "said") as reading:
                lines = reading.submit(_passed_on, self._running.stderr)
                status = self._running.wait()
                with suppress(ProcessLookupError):  # processes of an engine that was killed may keep their device
                    os.killpg(self._running.pid, signal.SIGKILL)
            return Ended(status, _error_in(lines.result()))

    def stop(self) -> None:
        """Have the command finish the unit in hand."""
        self._stopped = True
        if self._running is not None:
            self._running.terminate()


def _passed_on(said: IO[str]) -> list[str]:
    """Write each line to standard error; returns the last ones."""
    last: deque[str] = deque(maxlen=LINES_KEPT)
    for line in said:
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.strip():
            last.append(line.strip())
    return list(last)


def _error_in(lines: list[str]) -> str:
    found = [line for line in lines if line.startswith("error: ")] or lines
    return found[-1] if found else ""
