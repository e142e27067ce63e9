"""Leases in a folder, in an object store, and in a store without conditional writes."""

import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from benchmarks.queue_makespan import counted
from schemas.errors import ConflictError, UserError
from support.commands import fork_server
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import lease, locked_file
from teacher_cache.shards.conditional import MAX_BYTES, Conditional
from teacher_cache.shards.holder import Holder, parse_holder, this_process
from teacher_cache.shards.lease import WHOLE, Held, LentLease, part_lease, whole_place
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.slot import StoreObject
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify


@pytest.fixture(params=["folder", "memory", "s3", "no-locks"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_url"))
    if request.param == "no-locks":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr("teacher_cache.shards.conditional.SETTLE", 0.01)
    return Storage(f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "cache"))


def elsewhere(**changes: Any) -> Holder:
    """A process of another machine."""
    other = {"host": "other", "boot": "b" * 16, "machine": "c" * 16, "pid": 1, "started": 1}
    return this_process("teacher-cache run", "another").model_copy(update=other | changes)


def place(storage: Storage, holder: Holder, name: str = WHOLE) -> None:
    """Create a lease as another process would."""
    if storage.is_local:
        storage.local_path(name).parent.mkdir(exist_ok=True)
        storage.local_path(name).write_bytes(holder.to_bytes())
    else:
        requests, path = storage.conditional(name)
        requests._call("pipe_file", path, holder.to_bytes())


def test_the_whole_place_has_one_holder(storage: Storage) -> None:
    with whole_place(storage, "cache-tools merge") as mine:
        mine.check()
        pid = os.getpid()
        refusal = rf"\.lease\.json: in use by process {pid} on \S+ \(cache-tools merge, since .*\); wait for its end"
        with pytest.raises(ConflictError, match=refusal), whole_place(storage, "cache-tools push"):
            pass
        with pytest.raises(ConflictError, match=refusal), part_lease(storage, "shard-000000", "teacher-cache run"):
            pass
        assert storage.lease_names() == [WHOLE]
        assert storage.names() == []
    assert storage.lease_names() == []
    with whole_place(storage, "cache-tools push"):
        pass


def test_parts_share_the_place_and_exclude_the_whole(storage: Storage) -> None:
    with part_lease(storage, "shard-000000", "run"), part_lease(storage, "shard-000001", "run"):
        with pytest.raises(Held) as held, part_lease(storage, "shard-000001", "run"):
            pass
        assert held.value.name == ".lease-shard-000001.json"
        with pytest.raises(ConflictError, match="lease-shard-000000"), whole_place(storage, "cache-tools prune"):
            pass
    assert storage.lease_names() == []
    with whole_place(storage, "cache-tools prune"):
        pass


def hold(url: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the fork server is older than the S3 server
    with whole_place(Storage(url), "cache-tools merge"):
        signal.pause()


def has_holder(storage: Storage) -> bool:
    found = lease._slot(storage, WHOLE).look()
    return found is not None and found.holder is not None


def wait_for(look: Callable[[], object], wanted: object = True, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while look() != wanted:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stopped_holder_keeps_it_and_a_killed_one_does_not(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for url in (str(tmp_path / "cache"), request.getfixturevalue("s3_url")):
        storage, process = Storage(url), fork_server().Process(target=hold, args=(url, dict(os.environ)))
        process.start()
        assert process.pid is not None
        wait_for(partial(has_holder, storage))
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(psutil.Process(process.pid).status, psutil.STATUS_STOPPED)
        wanted = f"process {process.pid} .* it is stopped: resume it with `kill -CONT {process.pid}`"
        with pytest.raises(ConflictError, match=wanted), whole_place(storage, "cache-tools push"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with whole_place(storage, "cache-tools push"):
            pass
        assert storage.lease_names() == []


def test_a_holder_elsewhere_that_does_not_move_is_dead(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its clock is never consulted: the recorded start is in the year 3000."""
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    monkeypatch.setattr(lease, "POLL", 0.05)
    for name in (WHOLE, ".lease-shard-000000.json"):
        place(storage, elsewhere(since="3000-01-01"), name)
    with caplog.at_level(logging.INFO), whole_place(storage, "cache-tools push") as mine:
        mine.check()
        assert storage.lease_names() == [WHOLE]
    assert "no heartbeat from process 1 on other" in caplog.text
    assert storage.lease_names() == []


def test_a_holder_elsewhere_that_moves_is_alive(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL", 0.05)
    place(storage, elsewhere())
    look, beats = lease._Watch.look, iter(range(1, 100))

    def beating(watch: lease._Watch) -> bool:
        place(storage, elsewhere(beat=next(beats)))
        return look(watch)

    monkeypatch.setattr(lease._Watch, "look", beating)
    with pytest.raises(ConflictError, match=r"process 1 on other .*kill -9 1` on other"), whole_place(storage, "x"):
        pass


def writers(storage: Storage) -> Iterator[tuple[str, Any]]:
    yield "write", lambda: storage.write("shard-000000.json", b"mine")
    yield "delete", lambda: storage.delete("shard-000000.json")
    yield "staged", lambda: staged(storage)
    yield "new", lambda: storage.write("shard-000001.json", b"mine")


def staged(storage: Storage) -> None:
    with storage.staged("shard-000000.logits.tar") as path:
        path.write_bytes(b"mine")


def test_a_holder_that_lost_its_lease_changes_nothing(storage: Storage) -> None:
    """Another machine has taken over and written other files."""
    with whole_place(storage, "cache-tools merge") as mine:
        storage.write("shard-000000.json", b"theirs")
        storage.write("shard-000000.logits.tar", b"theirs")
        if storage.is_local:
            storage.local_path(WHOLE).unlink()
        place(storage, elsewhere())
        mine._confirmed -= 1000  # seconds without a heartbeat
        for what, act in writers(mine.storage):
            with pytest.raises(ConflictError, match="for so long that another one took over"):
                act()
            files = {name: storage.read(name) for name in storage.names()}
            assert files == {"shard-000000.json": b"theirs", "shard-000000.logits.tar": b"theirs"}, what
    left = lease._slot(storage, WHOLE).look()
    assert left is not None
    assert left.holder is not None
    assert left.holder.token == "another", "nor does it end another's lease"


def test_in_a_store_a_holder_that_lost_its_lease_overwrites_no_object(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended between its last check of the lease and its request."""
    storage = Storage(s3_url)
    with whole_place(storage, "cache-tools merge") as mine:
        for name in ("shard-000000.json", "manifest.json"):
            storage.write(name, b"theirs")
        place(storage, elsewhere())
        check, looks = mine.check, iter([None])

        def late(certain: bool = True) -> None:
            if next(looks, "over") == "over":
                check(certain)

        monkeypatch.setattr(mine, "check", late)
        for name in ("shard-000000.json", "manifest.json"):
            looks = iter([None])
            with pytest.raises(ConflictError, match="another one took over"):
                mine.storage.write(name, b"mine")
            assert storage.read(name) == b"theirs"


def test_another_process_writes_under_a_lease_as_long_as_it_holds(s3_url: str) -> None:
    storage = Storage(s3_url)
    with whole_place(storage, "train-student run") as first:
        lent = LentLease(storage, first.holder)
        fenced = storage.fenced(lent)
        fenced.write("a.json", b"one")
        fenced.write("a.json", b"two")
        place(storage, elsewhere())
        lent.check(certain=False)  # without a request: it has just been asked for
        with pytest.raises(ConflictError, match="another one took over"):
            fenced.write("a.json", b"three")
    assert storage.read("a.json") == b"two"


def test_a_lease_holder_replaces_existing_objects(storage: Storage) -> None:
    """For instance, leftovers of a killed writer."""
    for name in ("shard-000000.json", "shard-000000.logits.tar", "manifest.json"):
        storage.write(name, b"left")
    with whole_place(storage, "x") as mine:
        mine.storage.write("shard-000000.json", b"new")
        mine.storage.write("manifest.json", b"new" * MAX_BYTES)
        mine.storage.write("manifest.json", b"two" * MAX_BYTES)
        staged(mine.storage)
        if not storage.is_local:
            mine.storage.upload("shard-000001.logits.tar", 3, lambda: iter([b"new"]))
            mine.storage.upload("shard-000001.logits.tar", 3, lambda: iter([b"two"]))
            assert storage.read("shard-000001.logits.tar") == b"two"
    assert storage.read("shard-000000.json") == b"new"
    assert storage.read("manifest.json") == b"two" * MAX_BYTES
    assert storage.read("shard-000000.logits.tar") == b"mine"


def test_a_store_without_conditional_writes_is_logged_once(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def old(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if "IfNoneMatch" in options or "IfMatch" in options:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", old)
    monkeypatch.setattr("teacher_cache.shards.conditional.SETTLE", 0.01)
    storage = Storage(s3_url)
    with whole_place(storage, "x") as mine:
        mine.storage.write("a.json", b"x")
        with pytest.raises(ConflictError), whole_place(storage, "y"):
            pass
    assert caplog.text.count("this store has no conditional writes") == 1
    assert storage.lease_names() == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lease_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A link would redirect the write to another file, a pipe would block."""
    (tmp_path / "mine").write_text("mine")
    path = tmp_path / WHOLE
    if kind == "link":
        path.symlink_to("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"\.lease\.json"), whole_place(Storage(str(tmp_path)), "x"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_on_a_full_disk_a_lease_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that free space must still start."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locked_file.os, "pwrite", full)
    monkeypatch.setattr(locked_file, "STARTING", 0.05)
    storage = Storage(str(tmp_path))
    with whole_place(storage, "cache-tools prune") as mine:
        mine.check()
        with (
            pytest.raises(ConflictError, match=r"another process \(unknown: its lease has no record\)"),
            whole_place(storage, "x"),
        ):
            pass


def test_a_record_of_anything_is_no_holder() -> None:
    whole = elsewhere().to_bytes()
    assert parse_holder(whole) == elsewhere()
    for data in (b"", b"{}", b"\xff" * 99, whole[:50], whole.replace(b'"pid":1', b'"pid":-1'), b"[" * 5000):
        assert parse_holder(data) is None


def test_reading_needs_no_lease_and_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "cache")
    write_cache(url, random_shards([[5, 3]]))
    with whole_place(Storage(url), "x"):
        monkeypatch.setattr(lease, "acquire", None)
        assert verify(url).problems == []
        assert len(CacheReader(url)) == 2
        assert ".lease.json" not in Storage(url).sizes()


def test_concurrent_creators_of_one_object_are_told_apart(s3_url: str) -> None:
    """The first wins; the other's request, and one with an old tag, change nothing."""
    fs = fsspec.filesystem("s3")
    requests = Conditional(fs, lambda method, *arguments, **options: getattr(fs, method)(*arguments, **options), s3_url)
    path = f"{s3_url}/x"
    tag = requests.create(path, b"first")
    assert tag
    assert requests.create(path, b"second") is None
    assert requests.replace(path, b"second", '"0"') is None
    newer = requests.replace(path, b"newer", tag)
    assert newer
    requests.delete(path, tag)
    assert requests.read(path) == (b"newer", newer)
    requests.delete(path, newer)
    assert requests.read(path) is None
    assert StoreObject(requests, path).look() is None


def test_a_conditional_write_is_one_request(s3_url: str) -> None:
    requests, path = Storage(s3_url).conditional("x.json")
    with counted() as made:
        tag = requests.create(path, b"first")
        assert tag
        assert requests.replace(path, b"second", tag)
    assert made == {"put_object": 2}


@pytest.mark.parametrize("refused", [False, True])
def test_a_write_whose_answer_is_lost_is_recognised(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """By the client, which then tries again and is refused, or which gives up."""
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def loses(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        found = await call(self, method, *arguments, **options)
        if method == "put_object" and options["Body"] != b"another's":
            if refused:
                raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
            raise ConnectionResetError("the answer was lost")
        return found

    requests, path = Storage(s3_url).conditional("x.json")
    with monkeypatch.context() as patched:
        patched.setattr(S3FileSystem, "_call_s3", loses)
        tag = requests.create(path, b"first")
        assert tag
        newer = requests.replace(path, b"second", tag)
        assert newer
        assert newer != tag
    assert requests.read(path) == (b"second", newer)


def test_a_write_that_fails_is_no_write(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def fails(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "put_object":
            raise ConnectionResetError("reset by the peer")
        return await call(self, method, *arguments, **options)

    requests, path = Storage(s3_url).conditional("x.json")
    tag = requests.create(path, b"first")
    assert tag
    monkeypatch.setattr(S3FileSystem, "_call_s3", fails)
    with pytest.raises(ConnectionResetError):
        requests.replace(path, b"second", tag)
    with pytest.raises(ConnectionResetError):
        requests.create(path, b"second")
    assert requests.read(path) == (b"first", tag)
