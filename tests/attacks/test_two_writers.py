"""Two commands that write to one place, at once or with one of them stopped half-way and woken later."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from support.amount import amount
from support.commands import Forked, finish, kill_group, run_ok
from support.instants import at_change, wait_until_stopped
from support.models import write_random_teacher, write_text_corpus
from support.workspace import Workspace
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.checking.verify import verify
from tools.trust.signatures import signatures
from tools.trust.trusted_keys import read_keys
from trainer.run.checkpoint import checkpoint_folders, damage

COMMANDS = ("run", "merge", "repack", "prune", "push", "pull", "sign", "catalog")
PAIRS = {
    "folder": list(itertools.combinations_with_replacement((*COMMANDS, "train"), 2)),
    "s3": list(itertools.combinations_with_replacement(COMMANDS, 2)),  # students are trained in folders
}
TIMES = amount(1, full=20)  # of each pair; in the usual tests a third of the pairs is tried
APART = amount(0.3, full=2.0)  # seconds, at most
INSTANTS = 25  # the changes that most commands make
STARTS = ("nothing", "half", "whole", "litter")
LITTER = ("shard-000099.logits.tar", ".tmp-1-shard-000001.logits.tar")
CAPTURE = {"logits": {"k": 8, "temperatures": [1.0]}}


class Ground:
    """What the commands need: a config and a whole cache that it makes, half of it, others, and a key."""

    def __init__(self, folder: Path) -> None:
        teacher = write_random_teacher(folder / "teacher")
        corpus = write_text_corpus(folder / "corpus", documents=8, words=40)
        self.workspace = Workspace(folder, teacher, corpus)
        self.config = self.workspace.cache_config(folder / "whole", capture=CAPTURE)
        self.whole, self.half, self.litter = folder / "whole", folder / "half", folder / "litter"
        self.key = folder / "key"
        loop = {"max_steps": 4, "micro_batch_size": 4, "save_every": 2}
        self.train_config = self.workspace.train_config(self.whole, folder / "student", loop=loop)
        run_ok("teacher-cache", "run", self.config, "--set", f"output.path={self.half}", "--worker", "0/2")
        run_ok("teacher-cache", "run", self.config)
        run_ok("cache-tools", "keygen", self.key, "--name", "me")
        shutil.copytree(self.whole, self.litter)
        for name in LITTER:
            (self.litter / name).write_bytes(b"left over")

    def command(self, name: str, url: str) -> tuple[object, ...]:
        return {
            "run": ("teacher-cache", "run", self.config, "--set", f"output.path={url}"),
            "merge": ("cache-tools", "merge", self.whole, url),
            "repack": ("cache-tools", "repack", self.whole, url, "--k", "4"),
            "prune": ("cache-tools", "prune", url),
            "push": ("cache-tools", "push", self.whole, url),
            "pull": ("cache-tools", "pull", self.whole, url),
            "sign": ("cache-tools", "sign", url, "--key", self.key),
            "catalog": ("cache-tools", "catalog", url.rpartition("/")[0]),
            "train": ("train-student", "run", self.train_config, "--set", f"output={url}"),
        }[name]

    def prepare(self, start: str, url: str) -> None:
        if start == "nothing":
            return
        source = {"half": self.half, "whole": self.whole, "litter": self.litter}[start]
        if url.startswith("s3:"):
            fsspec.filesystem("s3").put(f"{source}/", f"{url}/", recursive=True)
        else:
            shutil.copytree(source, url)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("two"))


def tried(place: str) -> Iterator[tuple[str, str]]:
    """The pairs that are tried: in the usual tests some of them, fewer in a store."""
    every = amount(9 if place == "s3" else 3, full=1)
    return itertools.islice(PAIRS[place], 0, None, every)


@pytest.mark.parametrize(
    ("place", "pair"), [(place, pair) for place in ("folder", "s3") for pair in tried(place)], ids=str
)
def test_two_writers(
    ground: Ground, tmp_path: Path, request: pytest.FixtureRequest, place: str, pair: tuple[str, str]
) -> None:
    """Both start within two seconds, or the second while the first is stopped at any of its changes."""
    rng = random.Random(f"{place} {pair}")
    base = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_url")
    for number in range(TIMES):
        first, second = rng.sample(pair, 2)
        start, url = rng.choice(STARTS), f"{base}/{number}/cache"
        ground.prepare(start, url)
        instant = rng.randrange(INSTANTS) if number % 2 or TIMES == 1 else None
        done = run_two(ground, url, first, second, instant, rng.uniform(0, APART))
        story = f"{first} and {second} of {start}, stopped at {instant}: "
        check(ground, url, dict(zip((first, second), done, strict=True)), done, story)
        if place == "folder":
            shutil.rmtree(Path(url).parent, ignore_errors=True)


def run_two(
    ground: Ground, url: str, first: str, second: str, instant: int | None, apart: float
) -> list[subprocess.CompletedProcess[str]]:
    stop = None if instant is None else at_change(url, instant, signal.SIGSTOP)
    processes = [Forked(*ground.command(first, url), before=stop)]
    try:
        stopped = instant is not None and wait_until_stopped(processes[0])
        if not stopped:
            time.sleep(apart)
        processes.append(Forked(*ground.command(second, url)))
        if stopped:
            end = time.monotonic() + 3  # it may wait for the first
            while processes[1].poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            processes[0].send_signal(signal.SIGCONT)
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            kill_group(process)


def check(
    ground: Ground,
    url: str,
    ended: dict[str, subprocess.CompletedProcess[str]],
    both: list[subprocess.CompletedProcess[str]],
    story: str,
) -> None:
    """Whoever says that it succeeded has, nobody's success is undone, and what is there is a cache."""
    story += " ".join(f"[{done.returncode}] {done.stderr[-800:]}" for done in both)
    assert all("Traceback" not in done.stderr for done in both), story
    assert {done.returncode for done in both} <= {0, 2, 7}, story
    for done in both:
        if done.returncode:
            assert done.stderr.splitlines()[-1].startswith("error: "), story
    storage = Storage(url)
    succeeded = {name for name, done in ended.items() if done.returncode == 0}
    if storage.exists(MANIFEST):
        problems = [problem for problem in verify(url).problems if not any(name in problem for name in LITTER)]
        assert problems == [], story
    manifest = read_manifest(storage) if storage.exists(MANIFEST) else None
    made = succeeded - {"prune", "sign", "catalog", "train"}
    if made:
        assert manifest is not None, story
        assert manifest.complete, story
        derived = "run" if manifest.derived is None else manifest.derived.action
        kinds = {"push": "run", "pull": "run"}
        assert {kinds.get(name, name) for name in made} == {derived}, story
    if "sign" in succeeded:
        assert manifest is not None, story
        assert [one.problem for one in signatures(storage, manifest)] == [""], story
    if "prune" in succeeded:
        assert not set(LITTER) & set(storage.names()), story
    if "catalog" in succeeded:
        folder = Storage(url.rpartition("/")[0])
        found = json.loads(folder.read("catalog.json"))
        assert all(cache["path"] == "cache" for cache in found["caches"]), story
    if "train" in succeeded:
        assert json.loads(storage.read("summary.json"))["ended"] == "completed", story
        assert (Path(url) / "final/model.safetensors").exists(), story
        assert [damage(folder) for folder in checkpoint_folders(Path(url))] == [None, None], story
    assert storage.lease_names() == [], story


def test_eight_concurrent_trust_commands_lose_no_key(tmp_path: Path) -> None:
    """Each reads the file of trusted keys, adds a name and writes it; no name may be lost."""
    keys = tmp_path / "trusted"
    names = [f"name-{number}" for number in range(8)]
    add = [("trust", f"{n:064x}", "--name", name, "--trusted-keys", keys) for n, name in enumerate(names)]
    for done in [finish(process) for process in [Forked("cache-tools", *arguments) for arguments in add]]:
        assert done.returncode == 0, done.stderr
    assert sorted(read_keys(keys)) == names
    remove = [("trust", "--remove", name, "--trusted-keys", keys) for name in names[:7]]
    for done in [finish(process) for process in [Forked("cache-tools", *arguments) for arguments in remove]]:
        assert done.returncode == 0, done.stderr
    assert sorted(read_keys(keys)) == names[7:]
    assert [path.name for path in tmp_path.iterdir()] == ["trusted"]
