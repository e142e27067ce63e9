"""Processes of parts, with small programs in place of the commands."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from schemas.errors import UserError
from support.import_graph import ROOT
from teacher_cache.child_process import installed
from trainer.run.part_process import PartFailed, PartProcesses

SAYS_AND_WAITS = 'echo $$ > "$0"; exec sleep 60'


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return int(path.read_text())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_output_is_read_where_it_is_asked_for() -> None:
    assert PartProcesses().run(["echo", "words"], "x", output=True) == "words\n"
    assert PartProcesses().run(["echo", "words"], "x") == ""


def test_a_failed_part_has_its_exit_status() -> None:
    with pytest.raises(PartFailed, match="round 1: sh ended with exit status 4") as caught:
        PartProcesses().run(["sh", "-c", "exit 4"], "round 1")
    assert caught.value.exit_code == 4


def test_a_part_that_was_killed_is_said_to_be() -> None:
    with pytest.raises(PartFailed, match="round 1: sh was ended by SIGKILL; if it was short of memory") as caught:
        PartProcesses().run(["sh", "-c", "kill -9 $$"], "round 1")
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_part_and_no_other_begins(tmp_path: Path, number: int) -> None:
    parts = PartProcesses()

    def send() -> None:
        pid_in(tmp_path / "pid")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with parts.listening():
        assert parts.run(["sh", "-c", SAYS_AND_WAITS, str(tmp_path / "pid")], "x") is None
        assert parts.run(["touch", str(tmp_path / "next")], "x") is None
    sender.join()
    assert parts.signal_number == number
    assert not (tmp_path / "next").exists()
    assert not is_running(pid_in(tmp_path / "pid"))


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such call elsewhere")
def test_a_part_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    words = ["sh", "-c", SAYS_AND_WAITS, str(tmp_path / "pid")]
    code = f"from trainer.run.part_process import PartProcesses; PartProcesses().run({words!r}, 'x')"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    pid = pid_in(tmp_path / "pid")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_command_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"train-student: no such command beside .* or in PATH"):
        installed("train-student")
    command = tmp_path / "train-student"
    command.touch(mode=0o755)
    assert installed("train-student") == str(command)
