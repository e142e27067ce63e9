"""Storage behaves alike in a folder, in memory and in an object store behind a real S3 server."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from schemas.cache_config import captured_signals
from schemas.errors import CorruptCacheError, StoreError, UserError
from support.synthetic import file_entry, random_shards, write_cache
from teacher_cache.plan import most_units
from teacher_cache.shards import answers, store_requests
from teacher_cache.shards.answers import MAX_FILES
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage

TABLE = f"tables/{'a' * 64}.zst"


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3_url")
    return str(tmp_path / "cache") if request.param == "folder" else f"memory://{tmp_path.name}/cache"


@pytest.fixture
def storage(url: str) -> Storage:
    return Storage(url)


def test_written_files_read_back(storage: Storage) -> None:
    assert not storage.exists("a.json")
    assert storage.names() == []
    assert storage.write("a.json", b"0123456789") == file_entry(b"0123456789")
    storage.write(TABLE, b"table")
    storage.write("empty.json", b"")
    assert storage.sizes() == {"a.json": 10, "empty.json": 0, TABLE: 5}
    assert storage.names() == ["a.json", "empty.json", TABLE]
    assert storage.exists("a.json")
    assert storage.size("a.json") == 10
    assert storage.read("a.json") == b"0123456789"
    assert storage.read(TABLE) == b"table"


def test_files_written_after_a_listing_are_seen(storage: Storage) -> None:
    assert storage.names() == []
    storage.write("a.json", b"x")
    assert storage.read("a.json") == b"x"


def test_ranges(storage: Storage) -> None:
    storage.write("a.tar", b"0123456789")
    assert storage.read_range("a.tar", 0, 10) == b"0123456789"
    assert storage.read_range("a.tar", 3, 4) == b"3456"
    assert storage.read_range("a.tar", 8, 10) == b"89"


def test_delete(storage: Storage) -> None:
    storage.write("a.json", b"x")
    storage.write("b.json", b"x")
    storage.delete("a.json")
    assert storage.names() == ["b.json"]
    assert not storage.exists("a.json")
    storage.delete("a.json")


def test_another_client_sees_a_write_at_once(url: str) -> None:
    reader, writer = Storage(url), Storage(url)
    assert reader.names() == []
    writer.write("a.json", b"old")
    assert reader.exists("a.json")
    assert reader.read("a.json") == b"old"
    writer.write("a.json", b"newer")
    assert reader.read("a.json") == b"newer"
    assert reader.sizes() == {"a.json": 5}


@pytest.mark.parametrize("new", [b"longer than before", b"short"])
def test_a_file_that_another_process_replaces_is_read_whole(url: str, monkeypatch, new: bytes) -> None:
    """Another process replaces it right after its size was asked."""
    storage, size_of = Storage(url), Storage._size_of
    storage.write("a.json", b"before")
    sizes: list[int] = []

    def replace(self: Storage, path: str) -> int:
        sizes.append(size_of(self, path))
        if len(sizes) == 1:
            Storage(url).write("a.json", new)
        return sizes[-1]

    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    monkeypatch.setattr(Storage, "_size_of", replace)
    assert storage.read("a.json") == (new if sizes else b"before")  # a folder's is read through one open file
    assert sizes in ([], [6, len(new)])


def test_a_missing_file_is_named(storage: Storage) -> None:
    for read in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises(CorruptCacheError, match=r"shard-000000\.json: the file is missing") as caught:
            read("shard-000000.json")
        assert str(caught.value).startswith(storage.url)


def test_a_file_that_another_process_removes_reads_as_empty(storage: Storage) -> None:
    storage.write("a.json", b"x")
    assert storage.read_if_there("a.json") == b"x"
    storage.delete("a.json")
    assert storage.read_if_there("a.json") == b""


def test_a_file_above_the_limit_is_not_read(storage: Storage) -> None:
    storage.write("a.json", b"0123456789")
    assert storage.read("a.json", max_bytes=10) == b"0123456789"
    with pytest.raises(CorruptCacheError, match=r"a\.json: 10 bytes, at most 9"):
        storage.read("a.json", max_bytes=9)


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(storage: Storage) -> None:
    storage.write("a.json", b"old")
    folders: list[Path] = []

    def fail() -> None:
        with storage.staged("a.json", "worker-") as path:
            folders.append(path)
            path.write_bytes(b"half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert storage.names() == ["a.json"]
    assert storage.read("a.json") == b"old"
    assert not folders[0].exists()


def test_a_full_disk_is_one_line_that_names_the_file(storage: Storage) -> None:
    storage.write("a.tar", b"old")

    def fill() -> None:
        with storage.staged("a.tar") as path:
            path.symlink_to("/dev/full")
            path.write_bytes(bytes(1 << 16))

    with pytest.raises(UserError) as caught:
        fill()
    message = str(caught.value)
    assert message.startswith(f"{storage.where('a.tar')}: cannot be written: No space left on device")
    assert "\n" not in message
    assert storage.names() == ["a.tar"]
    assert storage.read("a.tar") == b"old"


def test_a_file_is_taken_from_a_cache_of_the_same_kind_of_place(url: str) -> None:
    source, target = Storage(f"{url}/a"), Storage(f"{url}/b")
    source.write(TABLE, b"table")
    assert target.link_or_copy("shard-000000.tokens.tar", source, TABLE)
    assert target.read("shard-000000.tokens.tar") == b"table"
    source.write(TABLE, b"another")
    source.delete(TABLE)
    assert target.read("shard-000000.tokens.tar") == b"table"
    assert not target.link_or_copy(TABLE, source, "missing.json")
    assert target.names() == ["shard-000000.tokens.tar"]


def test_a_file_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    folder, memory = Storage(str(tmp_path)), Storage(f"memory://{tmp_path.name}/elsewhere")
    folder.write("a.json", b"a")
    memory.write("b.json", b"b")
    assert not memory.link_or_copy("a.json", folder, "a.json")
    assert not folder.link_or_copy("b.json", memory, "b.json")
    assert (folder.names(), memory.names()) == (["a.json"], ["b.json"])


def test_temporary_names_start_with_the_owner(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with storage.staged(TABLE, "w1-") as path:
        path.write_bytes(b"x")
        names = storage.names()
    assert len(names) == 1
    assert names[0].startswith(".tmp-w1-")
    assert storage.names() == [TABLE]


def test_a_store_that_fails_is_one_line_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{tmp_path.name}")
    storage.write("a.json", b"old")

    requests = []

    def refuse(*_args: object, **_options: object) -> None:
        requests.append(1)
        raise RuntimeError("quota\nexceeded")

    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(UserError, match=r"a\.json: cannot be written: quota exceeded"):
        storage.write("a.json", b"new")
    assert storage.read("a.json") == b"old"
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(UserError, match=r"a\.json: cannot be read: quota exceeded"):
        storage.read("a.json")
    assert len(requests) == 2 * store_requests.ATTEMPTS


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "fails": lambda data: (_ for _ in ()).throw(ConnectionResetError("reset by the peer")),
    "stalls": lambda data: time.sleep(10) or data,
    "ends early": lambda data: data[:3],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_now_and_then_is_asked_again(tmp_path: Path, monkeypatch, fault: str) -> None:
    """Every second request fails, for every kind of read."""
    storage = Storage(f"memory://{tmp_path.name}")
    storage.write("a.json", b"0123456789")
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    monkeypatch.setattr(store_requests, "PATIENCE", 0.2)
    monkeypatch.setattr(store_requests, "LISTING_PATIENCE", 0.2)
    calls = itertools.count()
    for name in ("cat_file",) if fault == "ends early" else ("cat_file", "info", "find"):
        method = getattr(MemoryFileSystem, name)

        def now_and_then(*args: Any, method: Any = method, **options: Any) -> Any:
            found = method(*args, **options)
            return FAULTS[fault](found) if next(calls) % 2 == 0 else found

        monkeypatch.setattr(MemoryFileSystem, name, now_and_then)
    for _ in range(2):
        assert storage.read("a.json") == b"0123456789"
        assert storage.read_range("a.json", 2, 5) == b"23456"
        assert storage.size("a.json") == 10
        assert storage.exists("a.json")
        assert not storage.exists("b.json")
        assert storage.sizes() == {"a.json": 10}
    assert next(calls) > 4


@pytest.mark.parametrize("kind", ["s3", "memory", "folder"])
def test_a_listing_may_have_as_many_files_as_the_limit_and_no_more(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"memory": f"memory://{tmp_path.name}", "folder": str(tmp_path)}
    storage = Storage(request.getfixturevalue("s3_url") if kind == "s3" else other[kind])
    for name in ("a.json", "b.json", "tables/c.zst"):
        storage.write(name, b"x")
    monkeypatch.setattr(answers, "MAX_FILES", 3)
    assert storage.names() == ["a.json", "b.json", "tables/c.zst"]
    storage.write("d.json", b"x")
    with pytest.raises(StoreError, match="the listing has more than 3 files, too many for a cache"):
        storage.names()


def test_a_listing_has_room_for_the_units_that_may_be_planned() -> None:
    signals = len(captured_signals())
    files = signals + 3  # with tokens, mark and lease
    assert most_units(signals) > 100_000
    assert files * most_units(signals) + 5_000 < MAX_FILES


def test_a_listing_in_many_pages_has_time_for_each(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones must come in time, the others at the least rate."""
    storage = Storage(s3_url)
    for number in range(6):
        storage.write(f"{number}.json", b"x")
    monkeypatch.setattr(answers, "LISTED", 2)  # a second
    monkeypatch.setattr(store_requests, "ATTEMPTS", 1)
    monkeypatch.setattr(store_requests, "LISTING_PATIENCE", 0.4)

    def slowly(seconds: float) -> None:
        pages = S3FileSystem._iterdir

        async def each(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
            async for item in pages(*arguments, **options):
                await asyncio.sleep(seconds)
                yield item

        monkeypatch.setattr(S3FileSystem, "_iterdir", each)

    slowly(0.15)
    assert len(storage.names()) == 6, "0.9 s in all"
    slowly(1.0)
    with pytest.raises(StoreError, match="no answer in time"):
        storage.names()


def test_a_store_that_never_answers_is_one_line(tmp_path: Path, monkeypatch) -> None:
    storage = Storage(f"memory://{tmp_path.name}")
    storage.write("a.json", b"0123456789")
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    monkeypatch.setattr(store_requests, "PATIENCE", 0.1)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **options: time.sleep(10))
    with pytest.raises(UserError, match=r"a\.json: cannot be read: no answer in time"):
        storage.read_range("a.json", 0, 3)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "tables/../x",
        "tables/../../x",
        "a/b",
        "..",
        ".",
        "",
        "tables/",
        "a\n",
        "x/../../y",
        "~",
        "-x",
    ],
)
def test_names_outside_the_cache_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    storage = Storage(str(tmp_path / "cache"))
    for act in (storage.read, storage.exists, storage.delete, lambda name: storage.write(name, b"hostile")):
        with pytest.raises(CorruptCacheError, match="not a name of a cache's file"):
            act(name)
    assert (tmp_path / "x").read_bytes() == b"secret"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x"]


def test_an_unknown_protocol_and_a_missing_bucket(s3_server: str) -> None:
    with pytest.raises(UserError, match="nothing://x: cannot be opened"):
        Storage("nothing://x")
    with pytest.raises(UserError, match="not-a-bucket"):
        CacheReader("s3://not-a-bucket/cache")
    with pytest.raises(UserError, match=r"not-a-bucket/cache/a\.json: cannot be written"):
        Storage("s3://not-a-bucket/cache").write("a.json", b"x")


def test_a_cache_reads_the_same_wherever_it_lies(url: str, tmp_path: Path) -> None:
    shards = random_shards([[5, 1, 9], [3]])
    manifest = write_cache(url, shards)
    assert write_cache(str(tmp_path / "local"), shards) == manifest
    reader, local = CacheReader(url), CacheReader(str(tmp_path / "local"))
    assert reader.keys == local.keys
    rows = [[0, 1], [3], [2]]
    for name, array in vars(reader.read_rows(rows)).items():
        np.testing.assert_array_equal(array, getattr(local.read_rows(rows), name))
    assert reader.read_tokens(2).text == shards[0][2][0].text


def test_the_object_store_holds_only_the_caches_files(s3_url: str) -> None:
    write_cache(s3_url, random_shards([[5], [3]]))
    names = [path.split("/", 2)[2] for path in fsspec.filesystem("s3").find(s3_url)]
    assert sorted(names) == Storage(s3_url).names()
    assert [name for name in names if not name.startswith("tables/")] == [
        "manifest.json",
        *(f"shard-00000{n}.{end}" for n in (0, 1) for end in ("json", "logits.tar", "tokens.tar")),
        "vocabulary.arrow",
    ]
