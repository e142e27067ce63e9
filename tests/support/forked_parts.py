"""Parts of rounds, and cells of a matrix, that are forked from the process of these, which has the imports done."""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from support.commands import MODULES
from teacher_cache.child_process import ends_with
from trainer.run import part_process


class ForkedPart:
    """A part in a forked process, with as much of ``subprocess.Popen`` as is needed."""

    def __init__(self, words: Sequence[str], output: bool) -> None:
        self.returncode: int | None = None
        self._output = tempfile.NamedTemporaryFile() if output else None  # noqa: SIM115
        prepare = ends_with(os.getpid())
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, os.devnull if self._output is None else self._output.name, prepare)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, None]:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return ("" if self._output is None else Path(self._output.name).read_text()), None


def _become(words: Sequence[str], output: str, prepare: Any) -> None:
    status = 99
    try:
        os.setpgid(0, 0)
        if prepare is not None:
            prepare()
        for number in part_process.SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(output, os.O_WRONLY), 1)
        sys.argv = list(words)
        try:
            import_module(MODULES[words[0]]).main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def fork_parts() -> None:
    """To be called in the process that will run the parts."""
    part_process.start = ForkedPart  # type: ignore[assignment]
