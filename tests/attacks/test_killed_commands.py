"""SIGKILL at any change that a command makes: the same command, given again, completes."""

import json
import shutil
import signal
from pathlib import Path

import fsspec
import pytest

from support.amount import amount
from support.commands import Forked, finish, kill_group, run, run_ok
from support.golden import BUNDLED
from support.instants import at_change
from support.models import write_random_teacher
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify

EVERY = amount(7, full=1)  # how many instants lie between two that are tried
LITTER = ("shard-000099.logits.tar", ".tmp-1-shard-000001.logits.tar")
COMMANDS = ("merge", "repack", "import", "prune", "push", "pull", "subset", "sign", "catalog", "upgrade")
PLACES = {"folder": COMMANDS, "s3": ("merge", "repack", "prune", "push", "sign")}


class Sources:
    """Two caches, one of them as Parquet files too, a key, and the folder of an older cache's teacher."""

    def __init__(self, folder: Path) -> None:
        self.one, self.other, self.parquet, self.key = (folder / name for name in ("one", "other", "parquet", "key"))
        write_cache(str(self.one), random_shards([[5, 3], [7]]))
        write_cache(str(self.other), random_shards([[4]], seed=1))
        run_ok("cache-tools", "export", self.one, self.parquet, "--to", "parquet")
        run_ok("cache-tools", "keygen", self.key)
        self.teacher = write_random_teacher(folder / "teacher")

    def command(self, name: str, url: str) -> tuple[object, ...]:
        return {
            "merge": ("merge", self.one, self.other, url),
            "repack": ("repack", self.one, url, "--tokens-per-shard", 4),
            "import": ("import", self.parquet, url, "--from", "parquet"),
            "prune": ("prune", url),
            "push": ("push", self.one, url),
            "pull": ("pull", self.one, url),
            "subset": ("subset", self.one, url, "--sample", "99%"),
            "sign": ("sign", url, "--key", self.key),
            "catalog": ("catalog", url.rpartition("/")[0]),
            "upgrade": ("upgrade", BUNDLED, url, "--tokenizer", self.teacher),
        }[name]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    ("place", "name"), [(place, name) for place, names in PLACES.items() for name in names], ids=str
)
def test_killed_at_any_change(
    sources: Sources, tmp_path: Path, request: pytest.FixtureRequest, place: str, name: str
) -> None:
    """The command is killed just before each change in turn, and is given again."""
    base = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_url")
    wanted, instant = None, 0
    for instant in range(0, 1000, EVERY):
        url = f"{base}/{instant}/cache"
        if name in ("prune", "sign", "catalog"):
            prepare(sources, url, LITTER if name == "prune" else ())
        watched = url.rpartition("/")[0] if name == "catalog" else url
        process = Forked("cache-tools", *sources.command(name, url), before=at_change(watched, instant, signal.SIGKILL))
        first = finish(process)
        killed = first.returncode == -signal.SIGKILL
        assert killed or first.returncode == 0, first.stderr
        if killed:
            kill_group(process)
            again = run("cache-tools", *sources.command(name, url))
            assert again.returncode == 0, (instant, again.stderr)
        assert verify(url).problems == [], instant
        assert Storage(url).lease_names() == [], instant
        made = [entry for entry in Storage(url).names() if entry != "catalog.json"], read_manifest(Storage(url)).sha256
        wanted = wanted or made
        assert made == wanted, "whenever it was killed, the same came of it"
        if name == "catalog":
            assert json.loads(Storage(url.rpartition("/")[0]).read("catalog.json"))["caches"], instant
        if not killed:
            break
    assert instant >= 8 or name in ("prune", "sign", "catalog"), "it was not killed"


def prepare(sources: Sources, url: str, litter: tuple[str, ...]) -> None:
    if url.startswith("s3:"):
        fsspec.filesystem("s3").put(f"{sources.one}/", f"{url}/", recursive=True)
    else:
        shutil.copytree(sources.one, url)
    for name in litter:
        Storage(url).write(name, b"left over")
