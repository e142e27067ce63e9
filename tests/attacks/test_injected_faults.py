"""A disk that is full, over quota, failing, or a process out of handles or killed: at every n-th call of every command.

Each ends with one line or success, and the same command then completes.
"""

import errno
import os
import shutil
from pathlib import Path

import pytest

from schemas.errors import CorruptCacheError, MachineError
from support.amount import amount
from support.forker import FAULTS, Ended, Forker
from support.workshop import JOBS, TOOLS, Command
from teacher_cache.shards.reader import CacheReader

POINTS = amount(1, full=30)  # calls that fail, of a command and a fault
JOB_POINTS = amount(1, full=12)
WRITERS = ("import", "merge", "repack", "push", "pull", "subset", "split")
USUAL = amount(("merge", "push", "keygen", "sign", "report"), full=tuple(TOOLS))
USUAL_JOBS = amount(("run",), full=tuple(JOBS))
IS_DONE = {"export": "exists already", "keygen": "exists already"}  # said when the first attempt had finished

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="faults are injected by a library that gcc makes")


def ended_well(found: Ended, fault: str, what: str) -> None:
    assert not found.hung, what
    assert "Traceback" not in found.stderr, f"{what}: {found.stderr[-2000:]}"
    if fault == "kill":
        assert found.status in (-9, 0), f"{what}: {found.status} {found.stderr[-500:]}"
        return
    assert found.status in (0, 1, 2, 4, 8), f"{what}: {found.status} {found.stderr[-500:]}"
    if found.status > 1:
        errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, f"{what}: {found.stderr[-1000:]}"


def inject(forker: Forker, workshop: Path, folder: Path, name: str, command: Command, fault: str, points: int) -> None:
    below = workshop.parent
    counted = forker.run(command.prepare(workshop, folder / "counted"), folder / "counted", fault, below=below)
    assert counted.status == 0, counted.stderr
    for number, at in enumerate(sorted({1 + i * counted.calls // points for i in range(points)} | {counted.calls})):
        if not 1 <= at <= counted.calls:
            continue
        own = folder / str(number)
        line = command.prepare(workshop, own)
        what = f"{name}: {fault} at call {at} of {counted.calls}"
        first = forker.run(line, own, fault, at, below=below)
        ended_well(first, fault, what)
        if first.status != 0:  # some faults are got over: a link that fails becomes a copy
            again = forker.run(line, own)
            done = again.status == 0 or IS_DONE.get(name, "\n") in again.stderr
            assert done, f"{what}, and again: {again.status} {again.stderr[-500:]}"
        if command.made:
            found = forker.run(["cache-tools", "verify", command.made], own)
            assert found.status == 0, f"{what}: {found.stdout[-500:]}{found.stderr[-500:]}"
        shutil.rmtree(own)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", USUAL)
def test_a_tool_whose_disk_fails(forker: Forker, workshop: Path, tmp_path: Path, name: str, fault: str) -> None:
    """The disk under a tool's files fills up, fails once, the process runs out of handles, or is killed."""
    folder = workshop.parent / f"{name}-{fault}"
    inject(forker, workshop, folder, name, TOOLS[name], fault, POINTS)
    shutil.rmtree(folder)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", USUAL_JOBS)
def test_a_job_whose_disk_fails(forker: Forker, workshop: Path, tmp_path: Path, name: str, fault: str) -> None:
    """The same under planning, caching, training and evaluation."""
    trained_on = workshop / "trained_on"
    if not trained_on.exists():
        made = forker.run(
            ["teacher-cache", "run", str(workshop / "cache.yaml"), "--set", f"output.path={trained_on}"], workshop
        )
        assert made.status == 0, made.stderr
    folder = workshop.parent / f"{name}-{fault}"
    inject(forker, workshop, folder, name, JOBS[name], fault, JOB_POINTS)
    shutil.rmtree(folder)


@pytest.mark.parametrize("handles", [24, 64, 100])
@pytest.mark.parametrize("line", ["verify", "stats", "merge", "push"])
def test_few_handles(forker: Forker, workshop: Path, tmp_path: Path, line: str, handles: int) -> None:
    """A process may open a few files only: a sound cache is never called damaged, and what cannot be done is said."""
    command = TOOLS[line]
    found = forker.run(command.prepare(workshop, tmp_path / "x"), tmp_path / "x", limits={"RLIMIT_NOFILE": handles})
    assert "Traceback" not in found.stderr
    assert found.status in (0, 8), found.stdout + found.stderr
    if handles >= 64:
        assert found.status == 0, found.stderr
    else:
        assert found.status == 0 or "open more files" in found.stderr


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_failing_read_is_not_a_damaged_sample(workshop: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """`on_corrupt: skip` leaves out damaged samples; a machine out of handles, or a failing disk, is none of them."""

    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("teacher_cache.shards.ranges.os.pread", fail)
    with pytest.raises(MachineError) as caught:
        CacheReader(str(workshop / "cache")).read_logits(0)
    assert not isinstance(caught.value, CorruptCacheError)


@pytest.mark.parametrize("line", ["inspect W/cache", "inspect W/cache --json", "stats W/cache", "card W/cache", "-h"])
@pytest.mark.parametrize("output", ["/dev/full", "gone"])
def test_output_that_cannot_be_written(forker: Forker, workshop: Path, tmp_path: Path, line: str, output: str) -> None:
    """Standard output is a full disk, or a pipe whose reader has gone."""
    arguments = ["cache-tools", *line.replace("W/", f"{workshop}/").split()]
    found = forker.run(arguments, tmp_path, stdout=output)
    if output == "gone":
        assert (found.status, found.stderr) == (141, "standard output: its reader has exited\n")
    else:
        assert found.status == 4
        assert found.stderr.startswith("error: standard output: cannot be written: No space left on device")
        assert len(found.stderr.splitlines()) == 1
