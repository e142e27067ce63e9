"""Running the commands in processes of their own: as installed, or forked from a process that has the imports done.

A forked command is the same function in a process group of its own, with its own environment and output, but for the
seconds in which the interpreter starts and torch and transformers are imported. One fork server serves all tests of a
session.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

MODULES = {
    "teacher-cache": "teacher_cache.teacher_cache_cli",
    "train-student": "trainer.train_student_cli",
    "cache-tools": "tools.cache_tools_cli",
}
OUTPUTS = ("stdout", "stderr")


def environment() -> dict[str, str]:
    """This process' environment as it is now, and what commands need."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def command_line(command: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).parent / command), *map(str, arguments)]


class Forked:
    """A command in a forked process, with as much of ``subprocess.Popen`` as tests need."""

    def __init__(
        self,
        command: str,
        *arguments: object,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """``before``: what the process does first; it must be possible to pickle it."""
        self._output = tempfile.TemporaryDirectory()
        for name in OUTPUTS:
            (Path(self._output.name) / name).touch()
        line = [command, *map(str, arguments)]
        settings = (line, env or environment(), cwd or Path.cwd(), self._output.name, before)
        self._process = fork_server().Process(target=_run_command, args=settings)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; returns what it wrote to its standard output and error."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        stdout, stderr = ((Path(self._output.name) / name).read_text() for name in OUTPUTS)
        return stdout, stderr


def fork_server() -> ForkServerContext:
    """The process that others are forked from: it runs, with the imports done, when this returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def _run_command(
    line: list[str], env: dict[str, str], cwd: Path, output: str, before: Callable[[], None] | None
) -> None:
    os.setsid()
    os.chdir(cwd)
    for number, name in enumerate(OUTPUTS, start=1):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = line
    if before is not None:
        before()
    import_module(MODULES[line[0]]).main()


def start_installed(command: str, *arguments: object) -> subprocess.Popen[str]:
    """Start an installed command as a user does, as the leader of a process group of its own."""
    return subprocess.Popen(
        command_line(command, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


Process = Forked | subprocess.Popen[str]


def finish(process: Process, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Wait for a process and take what it has written; one that takes too long is killed."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def outputs(process: Process, status: int = 0, timeout: float = 300) -> tuple[str, str]:
    """What a process has printed, which must end with this status."""
    done = finish(process, timeout)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def run(command: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return finish(Forked(command, *arguments), timeout)


def run_installed(command: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return finish(start_installed(command, *arguments), timeout)


def run_ok(command: str, *arguments: object, timeout: float = 300) -> str:
    done = run(command, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_group(process: Process) -> None:
    """SIGKILL a process and all it started."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # just forked, it leads no group yet
            os.kill(process.pid, signal.SIGKILL)
    process.communicate()
