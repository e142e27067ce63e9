import errno
import uuid
from pathlib import Path

import pytest

from schemas.errors import CorruptCacheError, UserError
from teacher_cache.shards.storage import Storage


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_url"))
    return Storage(str(tmp_path / "cache") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def test_files_are_written_read_listed_and_deleted(storage: Storage) -> None:
    assert storage.names() == []
    entry = storage.write("shard-000000.json", b"0123456789")
    storage.write("tables/abc.zst", b"table")
    assert (entry.bytes, storage.size("shard-000000.json")) == (10, 10)
    assert storage.read("shard-000000.json") == b"0123456789"
    assert storage.read_range("shard-000000.json", 3, 4) == b"3456"
    assert storage.read_range("shard-000000.json", 8, 10) == b"89"
    assert storage.names() == ["shard-000000.json", "tables/abc.zst"]
    storage.write("shard-000000.json", b"new")
    assert storage.read("shard-000000.json") == b"new"
    storage.delete("shard-000000.json")
    storage.delete("shard-000000.json")
    assert not storage.exists("shard-000000.json")
    assert storage.names() == ["tables/abc.zst"]


def test_missing_and_oversized_files(storage: Storage) -> None:
    for read in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises(CorruptCacheError, match=r"shard-000009\.json: the file is missing"):
            read("shard-000009.json")
    storage.write("manifest.json", b"12345")
    with pytest.raises(CorruptCacheError, match=r"manifest\.json: 5 bytes, at most 4"):
        storage.read("manifest.json", max_bytes=4)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(storage: Storage) -> None:
    storage.write("manifest.json", b"old")
    with (
        pytest.raises(
            UserError, match=r"manifest\.json: cannot be written: No space left on device; .*free some space"
        ),
        storage.staged("manifest.json") as path,
    ):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert storage.read("manifest.json") == b"old"
    assert storage.names() == ["manifest.json"]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "tables/../x", "", "tables/", "a\nb", ".."])
def test_names_that_leave_the_cache_are_refused(storage: Storage, name: str) -> None:
    for use in (storage.read, storage.delete, lambda n: storage.write(n, b"x")):
        with pytest.raises(CorruptCacheError, match="not a name"):
            use(name)


@pytest.mark.parametrize("url", ["nosuch://bucket/cache", "s4://x"])
def test_unknown_protocols_are_a_user_error(url: str) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        Storage(url)
