"""Installed commands as child processes, which end with this process."""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from schemas.errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when the thread that started it ends


def installed(command: str) -> str:
    """The path of a command: beside this interpreter, else in PATH. Raises UserError if there is none."""
    beside = Path(sys.executable).parent / command
    found = str(beside) if beside.is_file() else shutil.which(command)
    if found is None:
        raise UserError(f"{command}: no such command beside {sys.executable} or in PATH; install the project there")
    return found


def ends_with(parent: int, number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """What a child of ``parent`` calls to get signal ``number`` when that dies; None where there is no such call."""
    if sys.platform != "linux":
        return None
    return partial(_end_with, ctypes.CDLL(None).prctl, parent, number)


def _end_with(prctl: Callable[[int, int], int], parent: int, number: int) -> None:
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), number)
