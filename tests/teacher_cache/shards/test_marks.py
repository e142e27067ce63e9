from pathlib import Path

import pytest

from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import assemble, committed, read_manifest, remove_garbage, up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage

LENGTHS = [[4, 5], [6], [7, 8]]


def test_the_manifest_follows_from_the_marks(tmp_path: Path) -> None:
    whole = write_cache(str(tmp_path), random_shards(LENGTHS))
    storage = Storage(str(tmp_path))
    bare = whole.model_copy(update={"shards": [], "tables": {}, "complete": False})
    assert assemble(storage, bare) == whole
    assert whole.complete
    assert (whole.totals.samples, whole.totals.tokens) == (5, 30)
    assert whole.totals.bytes["logits"] == sum(path.stat().st_size for path in tmp_path.glob("*.logits.tar"))


def test_shards_committed_since_the_manifest_was_written_are_readable(tmp_path: Path) -> None:
    interrupted = write_cache(str(tmp_path), random_shards(LENGTHS), commit=2)
    storage = Storage(str(tmp_path))
    older = interrupted.model_copy(update={"shards": interrupted.shards[:1], "tables": {}})
    storage.write("manifest.json", older.to_json().encode())
    assert len(read_manifest(storage).shards) == 1
    assert committed(storage, older) == ["shard-000000", "shard-000001"]
    assert up_to_date_manifest(storage).totals == interrupted.totals
    assert len(CacheReader(str(tmp_path))) == 3


def test_garbage_of_a_finished_cache_is_all_that_it_does_not_name(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path), random_shards(LENGTHS))
    garbage = [
        ".tmp-w3-shard-000001.logits.tar",
        "shard-000009.tokens.tar",
        "shard-000009.json",
        f"tables/{'0' * 64}.zst",
    ]
    foreign = ["README.md", "notes/shard.txt", "tables/notes.txt"]
    for name in garbage + foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(remove_garbage(Storage(str(tmp_path)), manifest)) == sorted(garbage)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert before - after == {tmp_path / name for name in garbage}


def test_while_others_work_only_own_temporary_files_are_removed(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path), random_shards(LENGTHS), commit=1)
    for name in (".tmp-w1-a", ".tmp-w2-a", "shard-000002.logits.tar"):
        (tmp_path / name).write_text("x")
    assert remove_garbage(Storage(str(tmp_path)), manifest, "w1-") == [".tmp-w1-a"]


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found, so this is not a cache"):
        read_manifest(Storage(str(tmp_path)))
