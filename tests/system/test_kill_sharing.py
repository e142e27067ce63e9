"""A push or a pull that is killed at any instant goes on where it stopped, and nobody ever sees half a cache."""

import itertools
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from schemas.errors import UserError
from support.amount import amount
from support.commands import Forked, kill_group, run_ok
from support.proxy import Proxy, proxied
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify

KILLS = amount(2, full=5)  # of each command with each number of files at a time
SHARDS = 16
SECONDS = 0.6  # that the server takes for all tars


class Watcher:
    """Opens the target again and again, as a reader does; ``problems``: whatever it was but no cache or a whole one."""

    def __init__(self, url: str) -> None:
        self.problems: list[str] = []
        self.absent, self.whole = 0, 0
        self.looking, self._was_whole = threading.Lock(), False
        self._url, self._over = url, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> None:
        try:
            n_samples = len(CacheReader(self._url))
        except UserError as error:
            self.absent += 1
            self._was_whole = False
            if "so this is not a cache" not in str(error):
                self.problems.append(str(error))
            return
        self.whole += 1
        if not self._was_whole:
            self.problems += verify(self._url, quick=True).problems
        self._was_whole = True
        if n_samples != SHARDS:
            self.problems.append(f"{n_samples} samples")

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            with self.looking:
                self.look()

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def objects(requests: list[tuple[str, str]], method: str) -> list[str]:
    """Tars, indexes and tables among those that were sent or fetched."""
    names = [path.rsplit("/", 1)[1] for made, path in requests if made == method]
    return [name for name in names if name.startswith("shard-") or name.endswith(".zst")]


def kill_and_go_on(
    arguments: tuple[object, ...], parallel: int, method: str, proxy: Proxy, watcher: Watcher, wipe: Callable[[], None]
) -> None:
    """Kill the command KILLS times at random instants; when it ends before, check and begin anew."""
    command = (*arguments, "--parallel", parallel)
    started = time.monotonic()
    run_ok("cache-tools", *command)
    whole_run = time.monotonic() - started
    with watcher.looking:
        wipe()
    rng, kills, runs = random.Random(parallel), 0, [len(proxy.requests)]
    while kills < KILLS:
        process = Forked("cache-tools", *command)
        time.sleep(rng.uniform(0.0, whole_run))
        if process.poll() is None:
            kill_group(process)
            kills += 1
            time.sleep(0.1)  # until the server has seen what was sent before
        else:
            _, stderr = process.communicate()
            assert process.returncode == 0, stderr
            check_runs(proxy, method, parallel, runs)
            with watcher.looking:
                wipe()
            runs = []
        runs.append(len(proxy.requests))
    run_ok("cache-tools", *command)
    check_runs(proxy, method, parallel, runs)
    with watcher.looking:
        watcher.look()
    assert watcher.whole > 0
    assert watcher.problems == []


def check_runs(proxy: Proxy, method: str, parallel: int, runs: list[int]) -> None:
    """Of the objects that one run has moved, later ones have moved again those that were on their way at its kill."""
    bounds = itertools.pairwise([*runs, len(proxy.requests)])
    moved = [objects(proxy.requests[begin:end], method) for begin, end in bounds]
    for number, names in enumerate(moved):
        assert len(names) == len(set(names)), "one run has moved an object twice"
        later = {name for others in moved[number + 1 :] for name in others}
        assert len(set(names) & later) <= parallel
    assert len({name for names in moved for name in names}) == 3 * SHARDS + 1


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(str(tmp_path / "cache"), random_shards([[5]] * SHARDS))
    return tmp_path / "cache"


@pytest.mark.parametrize("parallel", [1, 8])
def test_a_killed_push(cache: Path, s3_url: str, s3_server: str, parallel: int) -> None:
    direct = fsspec.filesystem("s3")
    with Watcher(s3_url) as watcher, proxied(s3_server, delay=parallel * SECONDS / SHARDS / 2) as proxy:

        def wipe() -> None:
            direct.invalidate_cache()
            direct.rm(s3_url, recursive=True)

        kill_and_go_on(("push", cache, s3_url), parallel, "PUT", proxy, watcher, wipe)
    assert Storage(s3_url).names() == Storage(str(cache)).names()
    assert verify(s3_url).problems == []


@pytest.mark.parametrize("parallel", [1, 8])
def test_a_killed_pull(cache: Path, s3_url: str, s3_server: str, tmp_path: Path, parallel: int) -> None:
    fsspec.filesystem("s3").put(f"{cache}/", f"{s3_url}/", recursive=True)
    target = tmp_path / "target"
    with Watcher(str(target)) as watcher, proxied(s3_server, delay=parallel * SECONDS / SHARDS / 2) as proxy:
        kill_and_go_on(("pull", s3_url, target), parallel, "GET", proxy, watcher, lambda: shutil.rmtree(target))
    assert Storage(str(target)).names() == Storage(str(cache)).names()
    assert verify(str(target)).problems == []
