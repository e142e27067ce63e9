"""A planner that is paused at any instant while another one plans, runs, pulls or merges there, and then goes on."""

import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.amount import amount
from support.commands import Forked, Process, finish, kill_group, run_ok
from support.instants import at_change, wait_until_stopped
from support.models import write_random_teacher, write_text_corpus
from support.workspace import Workspace
from teacher_cache.shards.marks import mark_names, read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.checking.verify import verify

TIMES = amount(2, full=13)  # of each command; instants of a plan are at most …
INSTANTS = 40
CAPTURE = {"logits": {"k": 8, "temperatures": [1.0]}, "final": {}}
OTHERS = ("plan", "run", "pull", "merge")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("paused")
    teacher = write_random_teacher(folder / "teacher")
    return Workspace(folder, teacher, write_text_corpus(folder / "corpus", documents=8, words=40))


@pytest.fixture(scope="module")
def whole(workspace: Workspace) -> Path:
    """What a run makes that nobody disturbs."""
    cache = workspace.folder / "whole"
    run_ok("teacher-cache", "run", workspace.cache_config(cache, capture=CAPTURE))
    return cache


def committed(url: str) -> dict[str, bytes]:
    """All files of shards that are committed at ``url``, and the manifest that was there."""
    storage = Storage(url)
    shards = [name.removesuffix(".json") for name in mark_names(storage)]
    files = [name for name in storage.names() if name.partition(".")[0] in shards or name == "head.safetensors"]
    return {name: storage.read(name) for name in files if shards}


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_planner_that_wakes(
    workspace: Workspace, whole: Path, tmp_path: Path, request: pytest.FixtureRequest, other: str, place: str
) -> None:
    """Nothing that was committed while it was paused is lost, and whoever says that it succeeded has."""
    rng = random.Random(f"{other} {place}")
    for number in range(TIMES):
        base = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_url")
        check(workspace, whole, f"{base}/{number}", other, rng.randrange(INSTANTS))


def check(workspace: Workspace, whole: Path, url: str, other: str, instant: int) -> None:
    config, output = workspace.folder / "cache.yaml", ("--set", f"output.path={url}")
    commands = {
        "plan": ("teacher-cache", "plan", config, *output),
        "run": ("teacher-cache", "run", config, *output),
        "pull": ("cache-tools", "push" if url.startswith("s3:") else "pull", whole, url),
        "merge": ("cache-tools", "merge", whole, url),
    }
    planner = Forked(*commands["run"], before=at_change(url, instant, signal.SIGSTOP))
    second: Process | None = None
    try:
        was_stopped = wait_until_stopped(planner)
        second = Forked(*commands[other])
        while_stopped = ended(second, seconds=3)
        before = committed(url)
        if was_stopped:
            planner.send_signal(signal.SIGCONT)
        first = finish(planner)
        last = while_stopped or finish(second)
    finally:
        for process in (planner, second):
            if process is not None:
                kill_group(process)
    where = f"{other} at instant {instant}: {first.stderr[-1500:]} {last.stderr[-1500:]}"
    assert "Traceback" not in first.stderr + last.stderr, where
    assert {first.returncode, last.returncode} <= {0, 2, 7}, where
    assert 0 in (first.returncode, last.returncode), where
    after = committed(url)
    assert {name: after.get(name) for name in before} == before, where
    assert verify(url).problems == [], where
    if first.returncode == 0:
        assert read_manifest(Storage(url)).complete, where
    assert Storage(url).exists(MANIFEST), where
    if not url.startswith("s3:"):
        shutil.rmtree(url)


def ended(process: Forked, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """What came of a process, if it ends in time: it may wait for the one that is paused."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    return subprocess.CompletedProcess([], process.returncode or 0, stdout, stderr)
