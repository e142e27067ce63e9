"""A queue of workers some of which are killed, or stopped until others take over and then woken, on a folder and S3."""

import random
import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.amount import FULL, amount
from support.commands import Forked, finish, kill_group, run_ok
from support.models import write_random_teacher, write_text_corpus
from support.workspace import Workspace
from teacher_cache.engines.transformers import TransformersEngine
from teacher_cache.records import Captured, Request
from teacher_cache.shards import holder, lease
from teacher_cache.shards.marks import mark_names, read_manifest
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify

EACH = amount(2, full=20)  # SIGKILLs, and SIGSTOPs followed by SIGCONT
WORKERS = 3
EXPIRY = 1.5  # seconds, in place of 60
BATCH_SECONDS = 0.25  # that a batch takes at least, so that there is work left when the last signal is sent
CAPTURE = {"logits": {"k": 8, "temperatures": [1.0]}, "draws": {"n": 4}}


def elsewhere() -> None:
    """Make this process one of a machine of its own: nobody sees its locks or its PID, and its lease expires."""
    digest = f"{random.SystemRandom().getrandbits(64):016x}"
    holder._machine = lambda: (digest, digest)  # type: ignore[assignment]
    socket.gethostname = lambda: f"machine-{digest[:4]}"
    lease.EXPIRY, lease.HEARTBEAT, lease.POLL = EXPIRY, EXPIRY / 10, EXPIRY / 20
    score_batch = TransformersEngine._score_batch

    def slowly(self: TransformersEngine, requests: Sequence[Request]) -> list[Captured]:
        time.sleep(BATCH_SECONDS)
        return score_batch(self, requests)

    TransformersEngine._score_batch = slowly  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("deaths")
    corpus = write_text_corpus(folder / "corpus", documents=amount(40, full=320), words=40)
    return Workspace(folder, write_random_teacher(folder / "teacher"), corpus)


def start(config: Path, url: str) -> Forked:
    output = ("--set", f"output.path={url}", "--set", "engine.max_batch_tokens=64")
    return Forked("teacher-cache", "run", config, *output, "--queue", before=elsewhere)


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_queue_whose_workers_die_and_wake(
    workspace: Workspace, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    """What is there in the end is what a single worker makes, to the byte, with one mark a unit."""
    alone = workspace.folder / f"alone-{place}"
    config = workspace.cache_config(alone, capture=CAPTURE)
    run_ok("teacher-cache", "run", config, "--set", "engine.max_batch_tokens=64")
    url = request.getfixturevalue("s3_url") if place == "s3" else str(tmp_path / "cache")
    rng, ended = random.Random(place), []
    workers = [start(config, url) for _ in range(WORKERS)]
    signals = [signal.SIGKILL, signal.SIGSTOP] * EACH
    try:
        while signals:
            time.sleep(rng.uniform(0.1, 1.0))
            victim = rng.randrange(WORKERS)
            if workers[victim].poll() is not None:
                ended.append(finish(workers[victim]))
                workers[victim] = start(config, url)
                continue
            number = signals.pop()
            workers[victim].send_signal(number)
            if number == signal.SIGSTOP:
                time.sleep(2 * EXPIRY)
                workers[victim].send_signal(signal.SIGCONT)
            else:
                kill_group(workers[victim])
                workers[victim] = start(config, url)
        assert len(mark_names(Storage(url))) < len(read_manifest(Storage(str(alone))).units), "all was done before"
        ended += [finish(worker) for worker in workers]
    finally:
        for worker in workers:
            kill_group(worker)
    said = "\n".join(done.stderr[-1500:] for done in ended)
    assert {done.returncode for done in ended} <= {0, 7}, said
    assert ended[-1].returncode == 0 or "took over" in ended[-1].stderr, said
    run_ok("teacher-cache", "run", config, "--set", f"output.path={url}")
    found, wanted = read_manifest(Storage(url)), read_manifest(Storage(str(alone)))
    assert verify(url).problems == []
    assert found.complete
    assert found.digest() == wanted.digest()
    assert mark_names(Storage(url)) == [f"{unit.name}.json" for unit in wanted.units]
    assert Storage(url).names() == Storage(str(alone)).names(), "nothing is left behind"
    if FULL:  # of a few stops, each may meet a worker that holds none
        assert re.search("took over|taking over", said), "no lease has expired"
