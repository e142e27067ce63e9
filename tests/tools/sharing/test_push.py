"""Transfer of whole caches: complete or absent, resumed, refused where another cache is."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.errors import ConflictError, CorruptCacheError, UserError
from schemas.manifest import Manifest
from schemas.signature import signature_file
from support.proxy import proxied
from support.signed import sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import shard_table
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.sharing.push import copy_cache
from tools.sharing.target import Target, opened_target
from tools.trust import carry as parts

SHARDS = random_shards([[9, 5], [7, 4, 8], [6]])
TAR = "shard-000001.logits.tar"


@pytest.fixture
def source(tmp_path: Path) -> Storage:
    write_cache(str(tmp_path / "source"), SHARDS)
    return Storage(str(tmp_path / "source"))


@pytest.fixture(params=["folder", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "target")
    return Storage(url)


def same(one: Storage, other: Storage) -> bool:
    return one.sizes() == other.sizes() and all(one.read(name) == other.read(name) for name in one.names())


def test_a_cache_goes_out_and_comes_back(source: Storage, target: Storage, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sent = copy_cache(source.url, target.url, advance=lambda done, total: seen.append((done, total))).as_dict()
    assert same(source, target)
    assert sent["sent"] == {"files": len(source.names()), "bytes": sum(source.sizes().values())}
    assert sent["skipped"] == {"files": 0, "bytes": 0}
    assert seen[-1][0] == seen[-1][1] > 0
    copy_cache(target.url, str(tmp_path / "back"))
    assert same(source, Storage(str(tmp_path / "back")))
    assert verify(str(tmp_path / "back")).problems == []


def test_a_second_time_nothing_is_sent(source: Storage, target: Storage) -> None:
    copy_cache(source.url, target.url)
    report = copy_cache(source.url, target.url).as_dict()
    assert report["sent"] == {"files": 0, "bytes": 0}
    assert report["skipped"]["files"] == len(source.names())


def test_what_is_missing_of_the_same_cache_is_completed(source: Storage, target: Storage) -> None:
    copy_cache(source.url, target.url)
    target.delete(TAR)
    report = copy_cache(source.url, target.url).as_dict()
    assert report["sent"] == {"files": 1, "bytes": source.size(TAR)}
    assert same(source, target)


def test_a_damaged_file_of_a_folder_is_sent_again(source: Storage, tmp_path: Path) -> None:
    copy_cache(source.url, str(tmp_path / "target"))
    path = tmp_path / "target" / TAR
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert copy_cache(source.url, str(tmp_path / "target")).as_dict()["sent"]["files"] == 1
    assert same(source, Storage(str(tmp_path / "target")))


def test_another_cache_is_not_touched(source: Storage, target: Storage) -> None:
    other = write_cache(target.url, random_shards([[4]], seed=1))
    before = target.sizes()
    with pytest.raises(UserError) as error:
        copy_cache(source.url, target.url)
    assert other.digest() in str(error.value)
    assert read_manifest(source).sha256 in str(error.value)
    assert target.sizes() == before


def test_an_incomplete_cache_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "source"), SHARDS, commit=2)
    with pytest.raises(UserError, match=r"not complete; finish it with .* `cache-tools subset"):
        copy_cache(str(tmp_path / "source"), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_foreign_objects_are_replaced_and_removed(source: Storage, target: Storage) -> None:
    """Files of the right sizes, without a manifest."""
    for name in (TAR, "shard-000009.logits.tar"):
        target.put(name, bytes(source.sizes().get(name, 5)))
    target.put("notes.txt", b"somebody's")
    copy_cache(source.url, target.url)
    assert target.read("notes.txt") == b"somebody's"
    target.delete("notes.txt")
    assert same(source, target)


def test_only_objects_of_the_same_transfer_are_trusted(source: Storage, s3_url: str) -> None:
    target = Storage(s3_url)
    digest = read_manifest(source).sha256
    copy_cache(source.url, s3_url)
    target.delete(MANIFEST)
    for marker, sent in ((f".push-{digest}.json", 1), (f".push-{'0' * 64}.json", len(source.names()))):
        target.put(marker, b"{}")
        assert copy_cache(source.url, s3_url).as_dict()["sent"]["files"] == sent
        assert same(source, target), "the marker must be gone"
        target.delete(MANIFEST)


def test_the_marker_comes_first_and_the_manifest_last(source: Storage, s3_url: str, s3_server: str) -> None:
    key = sign(source.url)
    with proxied(s3_server) as proxy:
        copy_cache(source.url, s3_url, parallel=1)
        changes = [(method, path.rsplit("/", 1)[1]) for method, path in proxy.requests if method in ("PUT", "DELETE")]
    lease = ("PUT", ".lease.json"), ("DELETE", ".lease.json")
    assert (changes[0], changes[-1]) == lease
    changes = [change for change in changes if change not in lease]
    marker = f".push-{read_manifest(source).sha256}.json"
    assert changes[0] == ("PUT", marker)
    assert changes[-3:] == [("PUT", MANIFEST), ("PUT", f"{key}.json"), ("DELETE", marker)]
    marks = [number for number, (_, name) in enumerate(changes) if name.startswith("shard-") and name.endswith(".json")]
    tars = [number for number, (_, name) in enumerate(changes) if name.endswith(".tar")]
    assert max(tars) < min(marks)


def test_a_wrong_file_of_the_source_is_named_and_no_cache_appears(source: Storage, target: Storage) -> None:
    path = source.local_path(TAR)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptCacheError, match=rf"source/{TAR}: sha256 is \w+, the manifest says"):
        copy_cache(source.url, target.url)
    assert TAR not in target.names()
    assert MANIFEST not in target.names()


def test_signatures_come_along(source: Storage, target: Storage) -> None:
    copy_cache(source.url, target.url)
    for signer in ("one", "two"):
        name = signature_file(sign(source.url, 1, signer))
        content = source.read(name)
        assert copy_cache(source.url, target.url).as_dict()["by_kind"]["signatures"]["sent"] == len(content)
        assert target.read(name) == content
    assert "signatures" not in copy_cache(source.url, target.url).as_dict()["by_kind"]


def test_signatures_are_bounded(source: Storage, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "MAX_SIGNATURE_BYTES", 10)
    monkeypatch.setattr(parts, "MAX_SIGNATURES", 2)
    source.put(f"signatures/{'a' * 64}.json", bytes(11))
    with pytest.raises(CorruptCacheError, match=r"signatures/a+\.json: 11 bytes, at most 10"):
        copy_cache(source.url, str(tmp_path / "target"))
    for name in "abc":
        source.put(f"signatures/{name * 64}.json", b"x")
    with pytest.raises(CorruptCacheError, match="3 signatures, wanted at most 2"):
        copy_cache(source.url, str(tmp_path / "target"))


def test_the_check_comes_before_anything_is_fetched(source: Storage, tmp_path: Path) -> None:
    seen = []

    def refuse(storage: Storage, manifest: Manifest) -> None:
        seen.append((storage.url, manifest.sha256))
        raise UserError("nobody vouches for it")

    with pytest.raises(UserError, match="nobody vouches"):
        copy_cache(source.url, str(tmp_path / "target"), check=refuse)
    assert seen == [(source.url, read_manifest(source).sha256)]
    assert not (tmp_path / "target").exists()


def test_a_pinned_manifest(source: Storage, tmp_path: Path) -> None:
    digest = read_manifest(source).sha256
    with pytest.raises(UserError, match=f"its sha256 is {digest}, wanted {'0' * 64}"):
        copy_cache(source.url, str(tmp_path / "target"), digest="0" * 64)
    copy_cache(source.url, str(tmp_path / "target"), digest=digest)


def test_temporary_files_of_a_killed_transfer_are_removed(source: Storage, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/.tmp-transfer-shard-000009.logits.tar").write_bytes(b"half")
    copy_cache(source.url, str(tmp_path / "target"))
    assert same(source, Storage(str(tmp_path / "target")))


def test_one_transfer_at_a_time_into_a_folder(source: Storage, tmp_path: Path) -> None:
    url = str(tmp_path / "target")
    with opened_target(url, "0" * 64, dry_run=False), pytest.raises(ConflictError, match="in use by process"):
        copy_cache(source.url, url)
    copy_cache(source.url, url)


def test_a_transfer_that_lost_its_lease_publishes_nothing(source: Storage, s3_url: str) -> None:
    first, second = (Target(Storage(s3_url), digit * 64) for digit in "01")
    first.begin()
    first.confirm()
    second.begin()
    with pytest.raises(UserError, match="another transfer to it has started"):
        first.confirm()
    Storage(s3_url).put(MANIFEST, b"{}")
    with pytest.raises(UserError, match="written by another process"):
        second.confirm()


def test_a_dry_run_changes_nothing(source: Storage, target: Storage) -> None:
    planned = copy_cache(source.url, target.url, dry_run=True).as_dict()
    assert target.names() == []
    done = copy_cache(source.url, target.url).as_dict()
    assert planned | {"dry_run": False} == done
    target.delete(TAR)
    before = target.sizes()
    assert copy_cache(source.url, target.url, dry_run=True).as_dict()["sent"]["files"] == 1
    assert target.sizes() == before


def test_a_cache_with_a_shard_table(tmp_path: Path, target: Storage, monkeypatch) -> None:
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 2)
    write_cache(str(tmp_path / "source"), SHARDS)
    source = Storage(str(tmp_path / "source"))
    from teacher_cache.shards.marks import write_manifest

    assert write_manifest(source, read_manifest(source)).shard_table is not None
    copy_cache(source.url, target.url)
    assert same(source, target)
    assert len(CacheReader(target.url)) == 6


def test_commands(source: Storage, s3_url: str, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(main, ["push", source.url, s3_url, "--json", "--parallel", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sent"]["files"] == len(source.names())
    result = runner.invoke(main, ["pull", s3_url, str(tmp_path / "target"), "--dry-run"])
    assert "would be sent" in result.stdout
    assert "logits" in result.stdout
    result = runner.invoke(main, ["pull", s3_url, str(tmp_path / "target"), "--json"])
    assert json.loads(result.stdout)["sent"]["bytes"] == sum(source.sizes().values())
    result = runner.invoke(main, ["pull", s3_url, str(tmp_path / "other"), "--digest", "0" * 64])
    assert result.exit_code == 2
    assert "error: s3:" in result.stderr
