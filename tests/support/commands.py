"""Running the installed commands in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """This process' environment as it is now, and what commands need."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def command_line(command: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).parent / command), *map(str, arguments)]


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    """Start an installed command as the leader of a process group of its own."""
    return subprocess.Popen(
        command_line(command, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def run(command: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_line(command, *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
        check=False,
    )


def run_ok(command: str, *arguments: object, timeout: float = 300) -> str:
    done = run(command, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL a process and all it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def train_in_fork(config: str, settings: dict[str, str]) -> None:
    """``train-student run``, for a process that is forked with the imports done; ``settings``: its environment."""
    from trainer.cli import main

    os.environ.update(settings)
    main(["run", config])
