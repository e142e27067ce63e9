"""Copying files between folders and an S3 server: checked in transit, atomic."""

import hashlib
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import FileEntry
from support.proxy import proxied
from support.synthetic import file_entry
from teacher_cache.shards import store_requests
from teacher_cache.shards.storage import Storage
from tools.checked_parts import Progress
from tools.sharing import copy_files as transfer
from tools.sharing.copy_files import copy_files

FILES = {"a.tar": 700_001, "b.tar": 0, "c.json": 10, f"tables/{'a' * 64}.zst": 5}
PLACES = ("folder", "s3", "memory")
_numbers = itertools.count()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest):
    def make(kind: str) -> Storage:
        name = f"{tmp_path.name}-{next(_numbers)}"
        root = {"folder": str(tmp_path), "memory": "memory://transfer"}.get(kind)
        return Storage(f"{root or request.getfixturevalue('s3_url')}/{name}")

    return make


def filled(storage: Storage) -> list[tuple[str, FileEntry]]:
    rng = np.random.default_rng(0)
    return [(name, storage.write(name, rng.bytes(size))) for name, size in FILES.items()]


@pytest.mark.parametrize("source_kind", PLACES)
@pytest.mark.parametrize("target_kind", PLACES)
def test_files_arrive_as_they_are(place, source_kind: str, target_kind: str, monkeypatch) -> None:
    monkeypatch.setattr(store_requests, "PART_BYTES", 1 << 18)
    source, target = place(source_kind), place(target_kind)
    files, seen = filled(source), []
    total = transfer.bytes_of(files)
    copy_files(source, target, files, 3, Progress(total, lambda done, of: seen.append((done, of))))
    assert target.sizes() == {name: entry.bytes for name, entry in files}
    for name, _ in files:
        assert target.read(name) == source.read(name)
    assert max(seen) == (total, total)


def test_a_large_file_is_uploaded_in_parts(place, s3_server: str, monkeypatch) -> None:
    """S3 accepts no parts below 5 MiB."""
    monkeypatch.setattr(transfer, "ONE_REQUEST", 1 << 20)
    source, target = place("folder"), place("s3")
    data = np.random.default_rng(0).bytes((17 << 20) + 3)
    entry = source.write("a.tar", data)
    with proxied(s3_server) as proxy:
        copy_files(source, Storage(target.url), [("a.tar", entry)], 2, Progress(entry.bytes))
        puts = [path for method, path in proxy.requests if method == "PUT"]
    assert len(puts) == 3
    assert hashlib.sha256(target.read("a.tar")).hexdigest() == entry.sha256


@pytest.mark.parametrize("one_request", [1 << 10, 1 << 25])
@pytest.mark.parametrize("target_kind", ["folder", "s3"])
@pytest.mark.parametrize("damage", [b"wrong", b"longer than it should be", b"cut"])
def test_other_content_never_appears(place, target_kind: str, damage: bytes, one_request: int, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "ONE_REQUEST", one_request)
    source, target = place("folder"), place(target_kind)
    entry = source.write("a.tar", bytes(6 << 20) + b"right")
    source.local_path("a.tar").write_bytes(bytes(6 << 20) + damage)
    with pytest.raises(
        CorruptCacheError, match=r"a\.tar: (sha256 is \w+|\d+ bytes), the manifest says \w+; it was not"
    ):
        copy_files(source, target, [("a.tar", entry)], 2, Progress(entry.bytes))
    assert target.names() == []
    if target_kind == "s3":
        assert target._fs.list_multipart_uploads(target._root.split("/")[0]) == [], (
            "parts are left that somebody pays for"
        )


def test_files_damaged_in_transit_are_fetched_again(place, s3_server: str) -> None:
    target, remote = place("folder"), place("s3")
    files = filled(remote)
    with proxied(s3_server, flips={"a.tar": 1, "c.json": 1}) as proxy:
        copy_files(Storage(remote.url), target, files, 2, Progress(1))
        assert proxy.injected["flip"] == 2
    assert target.read("a.tar") == remote.read("a.tar")


@pytest.mark.parametrize("target_kind", ["folder", "s3"])
def test_a_store_that_fails_now_and_then_is_asked_again(place, s3_server: str, monkeypatch, target_kind: str) -> None:
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0.01)
    remote, target = place("s3"), place(target_kind)
    source = place("s3")
    files = filled(source)
    with proxied(s3_server, shares={"error": 0.2, "truncation": 0.2, "reset": 0.2}) as proxy:
        copy_files(Storage(source.url), Storage(target.url), files, 4, Progress(1))
        assert proxy.injected.total() > 0
    assert remote.names() == []
    assert target.sizes() == source.sizes()


def test_a_missing_file_is_named_and_the_rest_is_not_begun(place) -> None:
    source, target = place("folder"), place("folder")
    files = [("missing.tar", file_entry(b"x")), *filled(source)]
    with pytest.raises(CorruptCacheError, match=r"missing\.tar: the file is missing"):
        copy_files(source, target, files, 1, Progress(1))
    assert target.names() == []


def test_a_full_disk_is_one_line(place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = place("folder"), place("folder")
    files = filled(source)
    folder = target.local_path("a.tar").parent
    folder.mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda n_bytes: "0")
    (folder / ".tmp-transfer-0-a.tar").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"a\.tar: cannot be written: No space left on device"):
        copy_files(source, target, files, 2, Progress(1))


def stage(storage: Storage) -> None:
    with storage.staged("a.json") as path:
        path.write_bytes(b"ab")


CHANGES = {
    "pipe_file": lambda storage: storage.put("a.json", b"ab"),
    "put_file": stage,
    "_open": lambda storage: storage.upload("a.json", 2, lambda: iter([b"a", b"b"])),
    "rm_file": lambda storage: storage.delete("b.json"),
}


@pytest.mark.parametrize("method", CHANGES)
def test_whatever_changes_a_store_is_tried_again(place, monkeypatch, method: str) -> None:
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    storage, failures = place("memory"), iter([True, True])
    storage.put("b.json", b"b")
    original = getattr(type(storage._fs), method)

    def fail_twice(*args, **options):
        if next(failures, False):
            raise ConnectionResetError("reset by the peer")
        return original(*args, **options)

    monkeypatch.setattr(type(storage._fs), method, fail_twice)
    CHANGES[method](storage)
    assert storage.sizes() == ({} if method == "rm_file" else {"a.json": 2, "b.json": 1})
    assert next(failures, None) is None


def test_an_upload_that_never_ends_is_given_up(place, monkeypatch) -> None:
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    monkeypatch.setattr(store_requests, "PATIENCE", 0.05)
    storage = place("memory")
    monkeypatch.setattr(type(storage._fs), "pipe_file", lambda *_, **__: time.sleep(5))
    with pytest.raises(UserError, match=r"a\.json: cannot be written: no answer in time"):
        storage.put("a.json", b"a")
