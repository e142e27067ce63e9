"""A caching run that is killed at any instant loses nothing that was committed and leaves nothing stray."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np

from support.amount import amount
from support.commands import Forked, kill_group, run_installed, run_ok
from support.workspace import Workspace
from teacher_cache.shards.reader import CacheReader

KILLS = amount(8, full=20)
CAPTURE = {
    "logits": {"k": 16, "temperatures": [1.0, 3.0]},
    "draws": {"n": 8, "temperatures": [1.0, 3.0]},
    "final": {},
    "hidden": {"layers": [1]},
    "attention": {"heads": 1},
}
SIGNALS = ("tokens", "logits", "draws", "final", "hidden", "attention")


def committed_files(cache: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each file of each committed shard."""
    marks = [path.stem for path in cache.glob("shard-*.json")]
    files = [path for shard in marks for path in cache.glob(f"{shard}.*")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_sigkill_at_random_instants(workspace: Workspace) -> None:
    reference, cache = workspace.folder / "reference", workspace.folder / "cache"
    done = run_installed("teacher-cache", "run", workspace.cache_config(reference, capture=CAPTURE))
    assert done.returncode == 0, done.stderr
    config = workspace.cache_config(cache, capture=CAPTURE)
    started = time.monotonic()
    run_ok("teacher-cache", "run", config)
    whole_run = time.monotonic() - started
    shutil.rmtree(cache)

    rng = random.Random(0)
    instants = []
    while len(instants) < KILLS:
        before = committed_files(cache)
        process = Forked("teacher-cache", "run", config)
        wait = rng.uniform(0.0, whole_run)
        time.sleep(wait)
        finished = process.poll() is not None
        kill_group(process) if not finished else process.communicate()
        after = committed_files(cache)
        assert before.items() <= after.items(), "a committed unit was written again"
        instants.append(wait)
        if finished or len(after) == len(committed_files(reference)):
            check_same(reference, cache, config)
            shutil.rmtree(cache)
    check_same(reference, cache, config)


def check_same(reference: Path, cache: Path, config: Path) -> None:
    before = committed_files(cache)
    run_ok("teacher-cache", "run", config)
    assert before.items() <= committed_files(cache).items(), "a committed unit was written again"
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (reference, cache)]
    assert names[0] == names[1], "stray or missing files"
    one, other = CacheReader(str(reference), SIGNALS), CacheReader(str(cache), SIGNALS)
    assert one.keys == other.keys
    for position in range(len(one)):
        a, b = one.read_logits(position), other.read_logits(position)
        for field in ("positions", "counts", "ids", "logprobs", "next_logprob", "log_partition"):
            assert np.array_equal(getattr(a, field), getattr(b, field), equal_nan=True), (position, field)
        for signal_name in ("tokens", "draws", "final", "hidden", "attention"):
            assert one.payload(position, signal_name) == other.payload(position, signal_name)
    assert one.manifest.digest() == other.manifest.digest()


def test_sigterm_finishes_the_current_unit(workspace: Workspace) -> None:
    cache = workspace.folder / "cache"
    config = workspace.cache_config(cache)
    process = Forked("teacher-cache", "run", config, "--json")
    deadline = time.monotonic() + 120
    while not list(cache.glob("shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    summary = json.loads(stdout)
    assert summary["stopped_by"] == "SIGTERM"
    marks = len(list(cache.glob("shard-*.json")))
    assert summary["units_scored"] == marks > 0
    assert not summary["complete"]
    assert not list(cache.glob(".tmp-*"))
    assert run_installed("cache-tools", "verify", cache).returncode == 0, "what was committed is readable"
    rest = json.loads(run_ok("teacher-cache", "run", config, "--json"))
    assert rest["units_skipped"] == marks
    assert rest["complete"]
