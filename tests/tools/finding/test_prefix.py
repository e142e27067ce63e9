"""Caches are found by their manifests, among other files."""

import os
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from schemas.errors import UserError
from tools.finding import prefix
from tools.finding.prefix import Prefix


def manifests(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / "manifest.json").write_text("{}")


def found(root: Path | str, depth: int = 3) -> list[str]:
    return [cache.path for cache in Prefix(str(root)).listing(depth).caches]


def test_caches_are_found_to_a_depth(tmp_path: Path) -> None:
    manifests(tmp_path, "one", "a/two", "a/b/three", "a/b/c/four")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert found(tmp_path, 1) == ["one"]
    assert found(tmp_path, 3) == ["a/b/three", "a/two", "one"]
    assert found(tmp_path, 4) == ["a/b/c/four", "a/b/three", "a/two", "one"]


def test_folders_inside_a_cache_are_not_searched(tmp_path: Path) -> None:
    manifests(tmp_path, "one", "one/inner")
    assert found(tmp_path) == ["one"]


def test_a_cache_itself_is_refused_and_so_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty or missing"):
        found(tmp_path / "absent")
    manifests(tmp_path, ".")
    with pytest.raises(UserError, match="is itself a cache"):
        found(tmp_path)


def test_unusual_names_are_left_out_and_counted(tmp_path: Path) -> None:
    manifests(tmp_path, "good", "with space", "<b>", ".hidden", "a\nb", "x" * 101, "sub/-dash", "sub/ok")
    (tmp_path / "folder" / "manifest.json").mkdir(parents=True)
    listing = Prefix(str(tmp_path)).listing()
    assert [cache.path for cache in listing.caches] == ["good", "sub/ok"]
    assert listing.left_out == 6


def test_links_are_not_followed(tmp_path: Path) -> None:
    manifests(tmp_path / "elsewhere", "secret")
    root = tmp_path / "root"
    manifests(root, "one")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert found(root) == ["one"]


def test_the_number_of_caches_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests(tmp_path, *(f"c{i}" for i in range(5)))
    monkeypatch.setattr(prefix, "MAX_FOLDERS", 4)
    with pytest.raises(UserError, match="5 folders and 0 caches"):
        found(tmp_path)
    monkeypatch.setattr(prefix, "MAX_FOLDERS", 5)
    assert len(found(tmp_path, 1)) == 5
    monkeypatch.setattr(prefix, "MAX_CACHES", 4)
    with pytest.raises(UserError, match="5 folders and 5 caches"):
        found(tmp_path, 1)


def test_size_and_time_of_a_manifest(tmp_path: Path) -> None:
    manifests(tmp_path, "one")
    os.utime(tmp_path / "one" / "manifest.json", (0, 1_700_000_000))
    (cache,) = Prefix(str(tmp_path)).listing().caches
    assert (cache.bytes, cache.written_at) == (2, datetime.fromtimestamp(1_700_000_000, UTC))


def test_an_object_store(s3_url: str) -> None:
    store = fsspec.filesystem("s3")
    root = s3_url.removeprefix("s3://")
    odd = ["a b", "<script>", "..", "dot/../dot", "é"]
    for path in ["one", "team/two", "team/deep/three", *odd]:
        store.pipe_file(f"{root}/{path}/manifest.json", b"{}")
    store.pipe_file(f"{root}/other/file", b"")
    before = datetime.now(UTC)
    listing = Prefix(s3_url).listing()
    assert [cache.path for cache in listing.caches] == ["one", "team/deep/three", "team/two"]
    assert listing.left_out == 5
    for cache in listing.caches:
        assert cache.written_at is not None
        assert abs((before - cache.written_at).total_seconds()) < 600
    assert Prefix(s3_url).files("other") == ["file"]
    assert Prefix(s3_url).files("nothing") == []
    with pytest.raises(UserError, match="empty or missing"):
        Prefix(f"{s3_url}/absent").listing()


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    manifests(tmp_path, "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "manifest.json").symlink_to("manifest.json")
    listing = Prefix(str(tmp_path)).listing()
    assert [cache.path for cache in listing.caches] == ["one"]
    assert listing.problems == {"two": "two/manifest.json: cannot be read: Too many levels of symbolic links"}
