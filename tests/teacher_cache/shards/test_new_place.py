"""The place of a new cache must be empty, and is empty again after a failure."""

from pathlib import Path

import pytest

from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.new_place import UNDER_WAY, new_cache, was_killed
from teacher_cache.shards.storage import MANIFEST, Storage


def test_a_place_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "shard-000000.json").write_text("somebody's")
    with (
        pytest.raises(UserError, match=r"a: 1 files already there \(shard-000000.json, …\)"),
        new_cache(f"{tmp_path}/a", "test"),
    ):
        pass
    write_cache(str(tmp_path / "b"), random_shards([[9]]))
    with pytest.raises(UserError, match=f"b/{MANIFEST}: a cache already exists"), new_cache(f"{tmp_path}/b", "test"):
        pass
    assert (tmp_path / "a" / "shard-000000.json").read_text() == "somebody's"
    assert (tmp_path / "b" / "shard-000000.json").exists()


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_a_failed_creation_is_removed(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with new_cache(str(tmp_path / "a"), "test") as storage:
            storage.write("tables/" + "0" * 64 + ".zst", b"x")
            storage.write("shard-000000.json", b"x")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not (tmp_path / "a").exists()


def test_a_finished_cache_is_kept_whatever_comes_after(tmp_path: Path) -> None:
    def fail() -> None:
        with new_cache(str(tmp_path / "a"), "test") as storage:
            storage.write("shard-000000.json", b"x")
            storage.write(MANIFEST, b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert Storage(str(tmp_path / "a")).names() == [UNDER_WAY, MANIFEST, "shard-000000.json"]


def test_leftovers_stay_marked_until_they_are_removed(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Storage(s3_url)
    for name in (UNDER_WAY, "shard-000000.json", "shard-000001.json"):
        left.write(name, b"x")
    removed: list[str] = []
    delete = Storage.delete

    def interrupted(storage: Storage, name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        delete(storage, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", interrupted)
        with pytest.raises(KeyboardInterrupt), new_cache(s3_url, "test"):
            pass
    assert len(left.names()) == 2
    with new_cache(s3_url, "test"):
        assert left.names() == [UNDER_WAY]
    assert left.names() == []


def test_a_sign_removed_after_the_listing_belongs_to_a_finished_command(s3_url: str) -> None:
    """Another command finished between the listing of the place and the reading of its sign."""
    assert not was_killed(Storage(s3_url), [UNDER_WAY, MANIFEST], b"sign")
