"""The requests of a queue on S3 that the simulation counts are those that arrive at a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.fleet_simulation import ACTS, FILES, Fleet
from schemas.cache_config import CacheConfig
from schemas.load import validate
from support.models import write_random_teacher
from support.proxy import Proxy, proxied
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.plan import load_or_make_plan, read_unit
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.shards import lease
from teacher_cache.shards.lease import acquire_part
from teacher_cache.shards.marks import mark_name
from teacher_cache.shards.storage import Storage
from teacher_cache.writing import UnitWriter

READING = ("GET", "HEAD")


class Counted:
    """(GETs and HEADs, PUTs and listings), filled in at the end of a block."""

    requests = (0, 0)


@contextmanager
def arriving(proxy: Proxy) -> Iterator[Counted]:
    """Count what arrives within the block."""
    found, before = Counted(), len(proxy.requests)
    yield found
    made = proxy.requests[before:]
    gets = sum(method in READING and path.strip("/").count("/") > 0 for method, path in made)
    found.requests = gets, sum(method != "DELETE" for method, _ in made) - gets


def plus(*acts: str) -> tuple[int, int]:
    return sum(ACTS[act][0] for act in acts), sum(ACTS[act][1] for act in acts)


def test_the_requests_of_claiming_are_those_that_arrive(
    s3_server: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 1000.0)
    units = [SimpleNamespace(name=f"shard-{number:06d}", size=1) for number in range(3)]
    with proxied(s3_server) as proxy:
        storage = Storage(s3_url)
        storage.write(mark_name(units[0].name), b"{}")
        held = acquire_part(Storage(s3_url), units[1].name, "teacher-cache run")
        with QueueClaims[Any](storage, units, lambda unit: unit.size) as claims:
            with arriving(proxy) as done:
                assert claims._claim(units[0]) is None
            with arriving(proxy) as refused:
                assert claims._claim(units[1]) is None
            with arriving(proxy) as again:
                assert claims._claim(units[1]) is None
            with arriving(proxy) as claimed:
                claim = claims._claim(units[2])
            assert claim is not None
            with arriving(proxy) as beat:
                claim.lease._beat()
        held.release()
    assert done.requests == plus("is done")
    assert refused.requests == plus("is done", "refused")
    assert again.requests == plus("is done", "look")
    assert claimed.requests == plus("is done", "claim")
    assert beat.requests == plus("beat")


def test_the_requests_of_reading_and_committing_are_those_that_arrive(
    tmp_path: Path, s3_server: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run with one unit, which has a code table when it commits."""
    monkeypatch.setattr(lease, "HEARTBEAT", 1000.0)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("some words " * 20)
    capture = {"logits": {"k": 8}, "draws": {"n": 2}}
    tree = cache_tree(write_random_teacher(tmp_path / "teacher"), tmp_path / "corpus", Path("none"), capture=capture)
    tree["output"]["path"] = s3_url
    config = validate(CacheConfig, tree, where="test")
    commit, found = UnitWriter._commit, []
    with proxied(s3_server) as proxy:

        def counted(self: UnitWriter) -> None:
            with arriving(proxy) as committed:
                commit(self)
            found.append(committed.requests)

        monkeypatch.setattr(UnitWriter, "_commit", counted)
        plan = load_or_make_plan(config, Storage(s3_url))
        with arriving(proxy) as read:
            read_unit(Storage(s3_url), plan.units[0], plan.teacher.vocab_size)
        assert len(plan.units) == 1
        job.run(config, job.Worker(queue=True))
    assert read.requests == plus("read")
    assert found == [plus("commit")]
    assert sum(name.startswith("shard-") for name in Storage(s3_url).names()) == FILES


def test_a_small_fleet_commits_all_units() -> None:
    fleet = Fleet(0, 300, 10, preempted=True)
    fleet.run()
    assert fleet.left == 0
    assert 1 < fleet.makespan < 2
    assert fleet.gets > fleet.units * plus("is done", "claim", "read", "commit")[0]
