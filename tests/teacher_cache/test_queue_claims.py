"""Claiming units from a queue: order, misses, listings, and the units of others."""

import random
import signal
import threading
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teacher_cache.claims import ShareClaims
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.queue_policy import LONGEST_PAUSE, MISSES, claim_classes, pause
from teacher_cache.shards import lease
from teacher_cache.shards.lease import acquire_part, part_name
from teacher_cache.shards.marks import mark_name
from teacher_cache.shards.storage import Storage
from teacher_cache.stop_request import StopRequest

Units = list[SimpleNamespace]


def units(n: int) -> Units:
    return [SimpleNamespace(name=f"shard-{number:06d}", size=1 + number % 2) for number in range(n)]


def queue(storage: Storage, all_units: Units) -> QueueClaims[Any]:
    return QueueClaims(storage, all_units, lambda unit: unit.size)


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "cache"))


def test_larger_units_come_first_and_equal_ones_in_an_order_of_ones_own() -> None:
    sizes = [100, 1000, 104, 500, 97, 1010] * 10
    one, other = ([*chain(*claim_classes(sizes, random.Random(seed)))] for seed in (1, 2))
    assert sorted(one) == sorted(other) == list(range(60))
    assert one != other
    for order in (one, other):
        assert [sizes[n] for n in order[20:30]] == [500] * 10
        assert {sizes[n] for n in order[:20]} == {1000, 1010}


def test_pauses_grow_to_a_limit() -> None:
    rng = random.Random(0)
    assert pause(0, rng) < 1 < pause(5, rng) <= 1.5 * LONGEST_PAUSE
    assert pause(10**6, rng) <= 1.5 * LONGEST_PAUSE


def test_each_unit_is_claimed_by_one_of_several(storage: Storage) -> None:
    """Of three that claim side by side, and whose listings are out of date from the start."""
    every = units(9)
    claimed: Counter[str] = Counter()

    def take() -> None:
        with queue(Storage(storage.url), every) as claims:
            while (claim := claims.next_or_wait(StopRequest())) is not None:
                claimed[claim.unit.name] += 1
                claim.lease.storage.write(mark_name(claim.unit.name), b"{}")
                claims.done(claim.unit)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert claimed == {unit.name: 1 for unit in every}
    assert storage.lease_names() == []


def test_after_many_misses_a_listing_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, every = Storage(str(tmp_path / "cache")), units(6 * MISSES)
    last = every[-1].name
    with queue(storage, every) as claims:
        (tmp_path / "cache").mkdir()
        for unit in every[:-1]:
            (tmp_path / "cache" / mark_name(unit.name)).write_bytes(b"{}")
        for of_size in claims._classes:
            of_size.sort(key=lambda unit: unit.name != last)  # the free one is tried last
        most = MISSES * len(claims._classes)
        asked: list[str] = []
        exists = storage.exists
        monkeypatch.setattr(storage, "exists", lambda name: asked.append(name) or exists(name))
        claim = claims.next()
        assert claim is not None
        assert claim.unit.name == last
        assert len(set(asked)) == most + 1 < len(every)
        assert claims.next() is None


def test_a_worker_without_work_does_what_another_gives_up(storage: Storage) -> None:
    every = units(2)
    held = acquire_part(storage, every[0].name, "teacher-cache run")
    with queue(storage, every) as claims:
        first = claims.next_or_wait(StopRequest())
        assert first is not None
        assert first.unit is every[1]
        storage.write(mark_name(first.unit.name), b"{}")
        claims.done(first.unit)
        assert claims.next() is None, "it does not wait"
        assert storage.lease_names() == [part_name(unit.name) for unit in every], "it holds one until it has another"
        threading.Timer(0.3, held.release).start()
        second = claims.next_or_wait(StopRequest())
        assert second is not None
        assert second.unit is every[0]
        assert storage.lease_names() == [part_name(every[0].name)]


def test_it_waits_for_the_units_of_others_unless_it_is_to_stop(storage: Storage) -> None:
    every, stop = units(1), StopRequest()
    held = acquire_part(storage, every[0].name, "teacher-cache run")
    with queue(storage, every) as claims:
        stop.signal_number = signal.SIGTERM
        assert claims.next_or_wait(stop) is None
        storage.write(mark_name(every[0].name), b"{}")
        assert claims.next_or_wait(StopRequest()) is None, "it is committed, though its lease is held"
    held.release()


def test_a_holder_elsewhere_is_passed_over_at_once_and_expires(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its machine is another one, so only its heartbeat tells; nobody waits for that while there is other work."""
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    monkeypatch.setattr(lease, "HEARTBEAT", 1000.0)
    storage, every = Storage(s3_url), units(2)
    with monkeypatch.context() as patched:
        patched.setattr("teacher_cache.shards.holder._machine", lambda: ("b" * 16, "c" * 16))
        dead = acquire_part(storage, every[0].name, "teacher-cache run")
    with queue(storage, every) as claims:
        assert claims.next() is not None
        assert claims.next() is None
        claim = claims.next_or_wait(StopRequest())
        assert claim is not None
        assert claim.unit is every[0]
        assert "no heartbeat" in caplog.text
        claim.lease.check()
        with pytest.raises(Exception, match="another one took over"):
            dead.check()
    dead.release()


def test_a_share_is_claimed_in_order_and_what_others_hold_is_left_to_them(storage: Storage) -> None:
    every = units(3)
    held = acquire_part(storage, every[1].name, "teacher-cache run")
    with ShareClaims(storage, every) as claims:
        claimed = [claims.next_or_wait(StopRequest()) for _ in range(3)]
        assert [claim and claim.unit.name for claim in claimed] == [every[0].name, every[2].name, None]
        assert list(claims.elsewhere) == [every[1].name]
    held.release()
