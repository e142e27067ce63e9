"""SIGKILL at any change that a curation makes: the same command, given again, makes the same files."""

import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from support.amount import amount
from support.commands import Forked, finish, kill_group, run, run_ok
from support.curating import curate_tree, write_curation_input
from support.instants import at_change

EVERY = amount(71, full=1)  # how many instants lie between two that are tried
INSTANTS = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curation")
    write_curation_input(folder)
    return folder


def configured(folder: Path, place: Path) -> Path:
    tree = curate_tree(folder, str(place), output={"path": str(place), "records_per_shard": 70})
    path = place.parent / "curate.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if not path.name.startswith(".lease")}


def test_killed_at_any_change(folder: Path, tmp_path: Path) -> None:
    """Changes at the output's place and in the scratch folder beside it."""
    config, place = configured(folder, tmp_path / "out"), tmp_path / "out"
    run_ok("teacher-cache", "curate", config)
    wanted = files(place)
    kills = 0
    for instant in range(0, INSTANTS, EVERY):
        shutil.rmtree(place)
        process = Forked("teacher-cache", "curate", config, before=at_change(str(place), instant, signal.SIGKILL))
        first = finish(process)
        killed = first.returncode == -signal.SIGKILL
        assert killed or first.returncode == 0, first.stderr
        if killed:
            kills += 1
            kill_group(process)
            again = run("teacher-cache", "curate", config)
            assert again.returncode == 0, (instant, again.stderr)
        assert files(place) == wanted, instant
        assert not (tmp_path / "out.scratch").exists(), instant
        if not killed:
            break
    assert kills >= 2, instant


def test_workers_end_with_the_process_that_started_them(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path / "out")
    process = Forked("teacher-cache", "curate", config, "--workers", 2)
    workers: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < end:
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        time.sleep(0.02)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    finish(process)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    run_ok("teacher-cache", "curate", config)
