"""The worker of a fleet on Ray, with a script in place of the command; Ray itself is in test_ray_fleet.py."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from teacher_cache.fleet import ray_worker
from teacher_cache.fleet.ray_worker import Ended, RayWorker


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayWorker:
    monkeypatch.setattr(ray_worker, "installed", lambda _: str(tmp_path / "command"))
    return RayWorker(str(tmp_path))


def write_command(folder: Path, *lines: str) -> None:
    (folder / "command").write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    (folder / "command").chmod(0o755)


def wait_for(path: Path) -> str:
    end = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.02)
    return path.read_text()


def test_what_the_command_gets_and_says(worker: RayWorker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_command(tmp_path, 'echo "$1 $3 $4 $(cat "$2")" > got', "echo error: no teacher >&2", "echo bye >&2", "exit 3")
    assert worker.run("generate", "seed: 1") == Ended(3, "error: no teacher")
    assert (tmp_path / "got").read_text() == "generate --queue --json seed: 1\n"
    assert capfd.readouterr().err == "error: no teacher\nbye\n"


def test_a_killed_command_ends_at_once_with_all_that_it_started(worker: RayWorker, tmp_path: Path) -> None:
    """Its child has the same standard error, which therefore stays open."""
    write_command(tmp_path, "echo loading >&2", "sleep 300 &", 'echo "$$ $!" > pids', "wait")
    with ThreadPoolExecutor(1) as running:
        ended = running.submit(worker.run, "run", "")
        command, child = map(int, wait_for(tmp_path / "pids").split())
        os.kill(command, signal.SIGKILL)
        assert ended.result(timeout=30) == Ended(-signal.SIGKILL, "loading")
    with suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(timeout=10)


def test_a_worker_stopped_before_its_command_stops_it(worker: RayWorker, tmp_path: Path) -> None:
    write_command(tmp_path, "exec sleep 300")
    worker.stop()
    assert worker.run("run", "").status == -signal.SIGTERM


def test_a_folder_that_the_machine_does_not_have_is_one_line(tmp_path: Path) -> None:
    ended = RayWorker(str(tmp_path / "elsewhere")).run("run", "")
    assert ended.status == 2
    assert ended.said.startswith(f"error: {tmp_path}/elsewhere: no such folder on ")
