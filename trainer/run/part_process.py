"""Parts of a command as processes of their own, which end when this one is asked to, or killed."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from schemas.errors import MachineError, UserError
from teacher_cache.child_process import ends_with, installed
from teacher_cache.stop_request import SIGNALS, handling

COMMANDS = ("teacher-cache", "train-student")


class PartFailed(UserError):
    """A part ended with an error, which it has printed; ``exit_code`` is the part's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PartProcesses:
    """Runs one command after the other; signals that arrive go to the one that runs, and no other is started."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._running: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, in the main thread, SIGTERM, SIGHUP and SIGINT are passed on, each time they arrive."""
        with handling(SIGNALS, self._pass_on):
            yield

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        if self._running is not None:
            self._running.send_signal(number)

    def run(self, words: Sequence[str], what: str, output: bool = False) -> str | None:
        """Run a command to its end; returns its standard output if ``output``, None if it was stopped.

        what: the part, for errors. Raises PartFailed.
        """
        if self.signal_number is not None:
            return None
        self._running = start(words, output)
        if self.signal_number is not None:  # it arrived while the process was started
            self._running.send_signal(self.signal_number)
        text, _ = self._running.communicate()
        status, self._running = self._running.returncode, None
        if status == 0:
            return text or ""
        if self.signal_number is not None:
            return None
        if status < 0:
            raise PartFailed(
                f"{what}: {words[0]} was ended by {signal.Signals(-status).name}; if it was short of memory use "
                "smaller settings; the same command continues",
                MachineError.exit_code,
            )
        raise PartFailed(f"{what}: {words[0]} ended with exit status {status}; its own message says why", status)


def start(words: Sequence[str], output: bool) -> subprocess.Popen[str]:
    """Start one of the installed commands, or a launcher with one; its standard output is read, or discarded.

    It leads a process group of its own: Ctrl-C in a terminal reaches it once, through this process. On Linux it is
    killed together with this process; a launcher gets SIGTERM then, to end what it has started.
    """
    line = [installed(word) if word in COMMANDS else word for word in words]
    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if output else subprocess.DEVNULL,
        text=True,
        process_group=0,
        preexec_fn=ends_with(os.getpid(), signal.SIGKILL if words[0] in COMMANDS else signal.SIGTERM),
    )
