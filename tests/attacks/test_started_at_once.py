"""Workers that are started together on a place where no cache is yet, as the README says that one may."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.amount import FULL, amount
from support.commands import Forked, finish, run_ok
from support.models import write_random_teacher, write_text_corpus
from support.workspace import Workspace
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify

WORKERS = amount(4, full=8)
TIMES = amount(1, full=10)
CAPTURE = {"logits": {"k": 8, "temperatures": [1.0]}, "final": {}, "hidden": {"layers": [1]}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("together")
    teacher = write_random_teacher(folder / "teacher")
    made = Workspace(folder, teacher, write_text_corpus(folder / "corpus", documents=24, words=40))
    made.cache_config(folder / "alone", capture=CAPTURE)
    return made


@pytest.fixture(scope="module")
def alone(workspace: Workspace) -> CacheReader:
    run_ok("teacher-cache", "run", workspace.folder / "cache.yaml")
    return CacheReader(str(workspace.folder / "alone"), ("tokens", "logits", "final", "hidden"))


def start(workspace: Workspace, url: str, *share: str) -> Forked:
    config = workspace.folder / "cache.yaml"
    return Forked("teacher-cache", "run", config, "--set", f"output.path={url}", *share, "--json")


def check_same(alone: CacheReader, url: str) -> None:
    """The same samples with the same signals, and nothing else there."""
    assert verify(url).problems == []
    reader = CacheReader(url, ("tokens", "logits", "final", "hidden"))
    assert reader.manifest.complete
    assert reader.keys == alone.keys
    for position in range(len(alone)):
        for signal in ("tokens", "final", "hidden"):
            assert reader.payload(position, signal) == alone.payload(position, signal), (position, signal)
        one, other = alone.read_logits(position), reader.read_logits(position)
        for field in vars(one):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
    tables = [name for name in Storage(url).names() if name.startswith("tables/")]
    assert sorted(tables) == sorted(f"tables/{digest}.zst" for digest in reader.manifest.tables)
    others = {name for name in Storage(url).names() if not name.startswith("tables/")}
    assert others == {name for name in Storage(alone.url).names() if not name.startswith("tables/")}
    assert Storage(url).lease_names() == []


@pytest.mark.parametrize(
    ("place", "queue"), [("folder", False), ("s3", False), ("folder", True), *([("s3", True)] if FULL else [])]
)
@pytest.mark.parametrize("time", range(TIMES))
def test_workers_started_at_once(
    workspace: Workspace,
    alone: CacheReader,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    place: str,
    queue: bool,
    time: int,
) -> None:
    """All workers look for a plan at the same instant, and none is there."""
    url = request.getfixturevalue("s3_url") if place == "s3" else str(tmp_path / "cache")
    shares = [("--queue",) if queue else ("--worker", f"{rank}/{WORKERS}") for rank in range(WORKERS)]
    workers = [start(workspace, url, *share) for share in shares]
    ended = [finish(worker) for worker in workers]
    for done in ended:
        assert done.returncode == 0, [one.stderr[-2000:] for one in ended]
        assert "Traceback" not in done.stderr
    assert sum("planned" in done.stderr for done in ended) == 1, "one plans"
    summaries = [json.loads(done.stdout) for done in ended]
    assert sum(summary["units_scored"] for summary in summaries) == len(alone.manifest.units)
    check_same(alone, url)
    assert CacheReader(url).manifest.digest() == alone.manifest.digest()


def test_the_same_command_started_twice(workspace: Workspace, alone: CacheReader, tmp_path: Path) -> None:
    """Two runs of one worker find the same units to be theirs."""
    for number in range(TIMES):
        url = str(tmp_path / f"cache-{number}")
        ended = [finish(process) for process in [start(workspace, url, "--worker", "0/1") for _ in range(2)]]
        assert {done.returncode for done in ended} <= {0, 2, 7}
        assert all("Traceback" not in done.stderr for done in ended)
        assert 0 in {done.returncode for done in ended}
        for done in ended:
            if done.returncode:
                assert done.stderr.splitlines()[-1].startswith("error: ")
                assert "process" in done.stderr.splitlines()[-1]
        check_same(alone, url)
