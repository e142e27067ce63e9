"""Shards made of chosen samples of another shard."""

from pathlib import Path

import pytest

from schemas.derivation import Derivation
from schemas.errors import CorruptCacheError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import files_beside_shards, read_manifest, read_mark, tar_name, write_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify
from tools.making import derived
from tools.making.derived import copy_samples, derived_manifest, source_of


@pytest.mark.parametrize("rows", [[0], [1, 2, 3], [0, 2, 3, 5]])
@pytest.mark.parametrize("read_bytes", [1, 1 << 23])
def test_a_shard_of_chosen_samples_is_a_valid_cache(
    tmp_path: Path, rows: list[int], read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "READ_BYTES", read_bytes)
    base = write_cache(str(tmp_path / "a"), random_shards([[9, 5, 7, 4, 8, 6]]))
    source, target = Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))
    entry = copy_samples(source, target, read_mark(source, "shard-000000"), rows, ("tokens", "logits"), "shard-000007")
    for name, _ in files_beside_shards(base):
        target.write(name, source.read(name))
    history = Derivation(action="subset", sources=[source_of(base)])
    write_manifest(target, derived_manifest(base, [entry], history, rewritten=True))

    assert verify(target.url).problems == []
    assert read_manifest(target).derived == history
    whole, part = CacheReader(source.url), CacheReader(target.url)
    assert part.keys == [whole.keys[row] for row in rows]
    for position, row in enumerate(rows):
        for signal in ("tokens", "logits"):
            assert part.payload(position, signal) == whole.payload(row, signal)


def test_a_damaged_payload_is_not_copied(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "a"), random_shards([[9, 5]]))
    source = Storage(str(tmp_path / "a"))
    index = read_mark(source, "shard-000000")
    with open(source.local_path(tar_name("shard-000000", "logits")), "r+b") as file:
        file.seek(index.signals["logits"].offsets[1] + 3)
        file.write(b"\xff\xfe")
    with pytest.raises(CorruptCacheError, match=index.keys[1]):
        copy_samples(source, Storage(str(tmp_path / "b")), index, [0, 1], ("tokens", "logits"), "shard-000000")
    assert list((tmp_path / "b").iterdir()) == []
