"""Sharing a file between caches: the same content by every route, or nothing."""

import errno
import os
from pathlib import Path

import pytest

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry
from teacher_cache.shards.storage import Storage
from tools.making.link import share_file

NAME, OTHER = "shard-000003.tokens.tar", "shard-000007.tokens.tar"


@pytest.fixture
def source(tmp_path: Path) -> tuple[Storage, FileEntry]:
    storage = Storage(str(tmp_path / "a"))
    return storage, storage.write(NAME, os.urandom(1000))


def test_a_local_file_is_linked(source: tuple[Storage, FileEntry], tmp_path: Path) -> None:
    target = Storage(str(tmp_path / "b"))
    assert not share_file(source[0], NAME, target, OTHER, source[1])
    assert target.local_path(OTHER).samefile(source[0].local_path(NAME))


def test_replacing_a_linked_file_leaves_the_other_name_alone(source: tuple[Storage, FileEntry], tmp_path: Path) -> None:
    target = Storage(str(tmp_path / "b"))
    share_file(source[0], NAME, target, OTHER, source[1])
    before = source[0].read(NAME)
    target.write(OTHER, b"new")
    assert source[0].read(NAME) == before


def test_a_file_that_is_a_symbolic_link_is_followed(source: tuple[Storage, FileEntry], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / NAME).symlink_to(Path("../a") / NAME)
    target = Storage(str(tmp_path / "deeper" / "b"))
    assert not share_file(Storage(str(tmp_path / "c")), NAME, target, OTHER, source[1])
    assert target.read(OTHER) == source[0].read(NAME)
    assert not target.local_path(OTHER).is_symlink()


def test_where_links_cannot_be_made_content_is_copied(
    source: tuple[Storage, FileEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    target = Storage(str(tmp_path / "b"))
    assert share_file(source[0], NAME, target, OTHER, source[1])
    assert target.read(OTHER) == source[0].read(NAME)
    assert not target.local_path(OTHER).samefile(source[0].local_path(NAME))


def test_content_that_is_not_what_the_manifest_says_is_not_written(
    source: tuple[Storage, FileEntry], s3_url: str
) -> None:
    target = Storage(s3_url)
    wrong = source[1].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CorruptCacheError, match=f"{source[0].url}/{NAME}: sha256 is {source[1].sha256}"):
        share_file(source[0], NAME, target, OTHER, wrong)
    with pytest.raises(CorruptCacheError, match="missing"):
        share_file(source[0], OTHER, target, OTHER, source[1])
    assert target.names() == []


def test_a_store_copies_itself(source: tuple[Storage, FileEntry], s3_url: str) -> None:
    first, second = Storage(f"{s3_url}/a"), Storage(f"{s3_url}/b")
    assert share_file(source[0], NAME, first, NAME, source[1])
    assert not share_file(first, NAME, second, f"tables/{OTHER}", source[1])
    assert second.read(f"tables/{OTHER}") == source[0].read(NAME)
    assert share_file(second, f"tables/{OTHER}", source[0], OTHER, source[1])
    assert source[0].read(OTHER) == source[0].read(NAME)
