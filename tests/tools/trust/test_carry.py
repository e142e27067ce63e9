"""A cache's signature is carried with its parts, and verifies them as far as possible."""

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.derivation import Selection
from support.forge import change_index, change_manifest, follow_totals
from support.signed import public_key, sign
from support.synthetic import file_entry, random_shards, write_cache
from teacher_cache.shards import shard_table
from teacher_cache.shards.marks import mark_name, read_manifest, write_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.checking.verify import verify
from tools.sharing.push import copy_cache
from tools.sharing.subset import choose, open_source, write_subset
from tools.trust.sign import trust_check


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = str(tmp_path / "source")
    write_cache(url, random_shards([[9, 7], [8], [6, 12]]))
    sign(url)
    return url


@pytest.fixture(params=["folder", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "target")


def take(source: str, target: str, **selection: object) -> None:
    write_subset(choose(*open_source(source), Selection.model_validate(selection)), target)


def problems(url: str, number: int = 1) -> list[str]:
    return verify(url, checks=[trust_check([public_key(number)])]).problems


def test_whole_shards_are_proven_whoever_passes_them_on(source: str, target: str, tmp_path: Path) -> None:
    take(source, target, shards=[(0, 1)])
    assert problems(target) == []
    (missing,) = problems(target, number=2)
    assert f"signed/signatures/{public_key(2)}.json" in missing
    copy_cache(target, str(tmp_path / "copy"))
    assert problems(str(tmp_path / "copy")) == []
    take(str(tmp_path / "copy"), str(tmp_path / "smaller"), shards=[(1, 1)])
    assert problems(str(tmp_path / "smaller")) == []
    assert len(read_manifest(Storage(str(tmp_path / "smaller"))).shards) == 1


def test_with_a_shard_table_too(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 2)
    assert write_manifest(Storage(source), read_manifest(Storage(source))).shard_table is not None
    sign(source)
    take(source, str(tmp_path / "part"), shards=[(1, 2)])
    assert problems(str(tmp_path / "part")) == []


def test_rewritten_shards_are_reported_as_unproven(source: str, target: str) -> None:
    take(source, target, share=(0.0, 0.5))
    (problem,) = problems(target)
    assert "are not files of the signed cache" in problem
    assert "the signature cannot tell which; pull whole shards" in problem


def other_samples(url: str) -> None:
    change_index(url, lambda tree: tree["keys"].__setitem__(0, "0" * 32))


def other_teacher(url: str) -> None:
    change_manifest(url, lambda tree: tree["teacher"].update(name="another"))


def other_whole(url: str) -> None:
    """The signed manifest is changed to list the part's files."""
    other_samples(url)
    entry = file_entry(Storage(url).read(mark_name("shard-000000"))).model_dump()

    def follow(tree: dict) -> None:
        tree["shards"][0]["index"] = entry
        follow_totals(tree)

    change_manifest(f"{url}/signed", follow)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (other_samples, r"1 of 2 shards, the first shard-000000, are not files of the signed cache"),
        (other_teacher, r"teacher: differs from the signed manifest"),
        (other_whole, r"signed manifest \w+, this cache's is \w+: the cache was modified since"),
    ],
)
def test_changes_are_found(source: str, tmp_path: Path, change: Callable[[str], None], problem: str) -> None:
    url = str(tmp_path / "part")
    take(source, url, shards=[(0, 1)])
    change(url)
    with pytest.raises(Exception, match=problem):
        trust_check([public_key(1)])(Storage(url), read_manifest(Storage(url)))


def test_a_changed_file_is_found_by_the_parts_own_checksums(source: str, tmp_path: Path) -> None:
    url = str(tmp_path / "part")
    take(source, url, shards=[(0, 1)])
    path = tmp_path / "part/shard-000001.logits.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert any("shard-000001.logits.tar" in problem for problem in problems(url))


def test_an_unsigned_cache_carries_no_signature(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "source"), random_shards([[9], [8]]))
    take(str(tmp_path / "source"), str(tmp_path / "part"), shards=[(0, 0)])
    assert not (tmp_path / "part/signed").exists()
    assert (tmp_path / "part" / MANIFEST).exists()
