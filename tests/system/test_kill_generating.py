"""A generation that is killed at any instant gives the same files as one that is not, each reply once."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from support.amount import amount
from support.commands import Forked, kill_group, run_installed, run_ok
from support.talking import generate_tree, write_prompts, write_talking_generator
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.shards.storage import Storage

KILLS = amount(5, full=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_talking_generator(tmp_path / "generator")
    write_prompts(tmp_path / "prompts.jsonl", 40)
    return tmp_path


def config(folder: Path, place: Path) -> Path:
    path = folder / f"{place.name}.yaml"
    path.write_text(yaml.safe_dump(generate_tree(folder / "generator", folder / "prompts.jsonl", place)))
    return path


def files(place: Path) -> dict[str, bytes]:
    paths = [path for path in place.rglob("*") if path.is_file()] if place.exists() else []
    return {str(path.relative_to(place)): path.read_bytes() for path in paths if not path.name.startswith(".lease")}


def committed(place: Path) -> dict[str, int]:
    """Modification time of the mark and the replies of each committed unit."""
    marks = list(place.glob("shard-*.json"))
    return {path.name: path.stat().st_mtime_ns for mark in marks for path in (mark, mark.with_suffix(".replies.zst"))}


def test_sigkill_at_random_instants(folder: Path) -> None:
    reference, place = folder / "reference", folder / "place"
    done = run_installed("teacher-cache", "generate", config(folder, reference))
    assert done.returncode == 0, done.stderr
    settings = config(folder, place)
    run_ok("teacher-cache", "generate", settings, "--dry-run")  # starts what commands are forked from
    started = time.monotonic()
    run_ok("teacher-cache", "generate", config(folder, folder / "timed"))
    whole_run = time.monotonic() - started

    rng = random.Random(0)
    kills = in_the_middle = 0
    while kills < KILLS:
        before = committed(place)
        process = Forked("teacher-cache", "generate", settings)
        time.sleep(rng.uniform(0.0, whole_run))
        killed = process.poll() is None
        kill_group(process) if killed else process.communicate()
        kills += killed
        after = committed(place)
        assert before.items() <= after.items(), "a committed unit was written again"
        in_the_middle += killed and 0 < len(after) < len(committed(reference))
        if not killed or len(after) == len(committed(reference)):
            check_same(reference, place, settings)
            for path in place.iterdir():
                path.unlink()
    assert in_the_middle > 0
    check_same(reference, place, settings)


def check_same(reference: Path, place: Path, settings: Path) -> None:
    before = committed(place)
    run_ok("teacher-cache", "generate", settings)
    assert before.items() <= committed(place).items(), "a committed unit was written again"
    assert files(place) == files(reference)
    storage = Storage(str(place))
    times = Counter((reply.key, reply.sample) for _, reply in replies_of(storage, read_generated(storage)))
    assert len(times) == 120
    assert set(times.values()) == {1}


def test_two_processes_with_the_same_share_do_not_write_the_same_unit(folder: Path) -> None:
    reference, place = folder / "reference", folder / "place"
    run_ok("teacher-cache", "generate", config(folder, reference))
    pair = [Forked("teacher-cache", "generate", config(folder, place), "--json") for _ in range(2)]
    written = []
    for process in pair:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 7), stderr
        if process.returncode == 0:
            written.append(json.loads(stdout)["units_written"])
    assert sum(written) <= 14
    summary = json.loads(run_ok("teacher-cache", "generate", config(folder, place), "--json"))
    assert summary["complete"]
    assert files(place) == files(reference)


def test_a_queue_survives_the_death_of_one_of_its_processes(folder: Path) -> None:
    reference, place = folder / "reference", folder / "place"
    run_ok("teacher-cache", "generate", config(folder, reference))
    first, other = (Forked("teacher-cache", "generate", config(folder, place), "--queue", "--json") for _ in range(2))
    deadline = time.monotonic() + 120
    while not list(place.glob("shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    kill_group(first)
    stdout, stderr = other.communicate(timeout=120)
    assert other.returncode == 0, stderr
    assert json.loads(stdout)["complete"]
    assert files(place) == files(reference)


def test_sigterm_finishes_the_current_unit(folder: Path) -> None:
    place = folder / "place"
    process = Forked("teacher-cache", "generate", config(folder, place), "--json")
    deadline = time.monotonic() + 120
    while not list(place.glob("shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    summary = json.loads(stdout)
    assert summary["stopped_by"] == "SIGTERM"
    assert summary["units_written"] == len(list(place.glob("shard-*.json"))) > 0
    assert not summary["complete"]
    assert not list(place.glob(".tmp-*"))
    rest = json.loads(run_ok("teacher-cache", "generate", config(folder, place), "--json"))
    assert rest["complete"]
    assert rest["units_skipped"] == summary["units_written"]
