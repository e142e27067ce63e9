"""Files that the manifest does not list are removed; all others stay."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import shard_table
from teacher_cache.shards.marks import read_manifest, write_manifest
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.making.prune import prune

LEFT = {
    ".tmp-worker7-shard-000009.tokens.tar": b"xx",
    "shard-000009.tokens.tar": b"xxx",
    "shard-000001.json": b"x",
    "tables/" + "0" * 64 + ".zst": b"xxxx",
}
OTHERS = ["README.md", "signatures/" + "0" * 64 + ".json", "shard-1.json", "notes.zip", "more.txt"]


def litter(url: str) -> Storage:
    storage = Storage(url)
    write_cache(url, random_shards([[9, 7]]))
    for name, content in LEFT.items():
        storage.write(name, content)
    for name in OTHERS:
        storage.write(name, b"mine")
    return storage


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    storage = litter(str(tmp_path))
    assert prune(str(tmp_path), dry_run=True) == {name: len(content) for name, content in LEFT.items()}
    before = set(storage.names())
    assert set(prune(str(tmp_path))) == set(LEFT)
    assert before - set(storage.names()) == set(LEFT)
    assert set(OTHERS) < set(storage.names())
    assert verify(str(tmp_path)).problems == []
    assert prune(str(tmp_path)) == {}


def test_a_store_is_pruned_too(s3_url: str) -> None:
    litter(s3_url)
    assert set(prune(s3_url)) == set(LEFT)
    assert verify(s3_url).problems == []


def test_the_shards_of_a_table_are_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = litter(str(tmp_path))
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 0)
    assert write_manifest(storage, read_manifest(storage)).shard_table is not None
    assert set(prune(str(tmp_path))) == set(LEFT)
    assert verify(str(tmp_path)).problems == []


def test_an_incomplete_cache_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path), random_shards([[9], [7]]), commit=1)
    (tmp_path / "shard-000009.tokens.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="the cache is not complete"):
        prune(str(tmp_path))
    assert (tmp_path / "shard-000009.tokens.tar").exists()


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard-000009.tokens.tar").write_bytes(b"x")
    assert CliRunner().invoke(main, ["prune", str(tmp_path)]).exit_code == 2
    assert (tmp_path / "shard-000009.tokens.tar").exists()


def test_the_command_lists_names_and_sizes(tmp_path: Path) -> None:
    litter(str(tmp_path))
    listed = CliRunner().invoke(main, ["prune", str(tmp_path), "--dry-run"])
    assert "             3  shard-000009.tokens.tar\n" in listed.stdout
    assert listed.stdout.endswith("4 files of 10 bytes would be removed\n")
    done = json.loads(CliRunner().invoke(main, ["prune", str(tmp_path), "--json"]).stdout)
    assert done == {"removed": True, "files": {name: len(x) for name, x in LEFT.items()}, "bytes": 10}
    assert CliRunner().invoke(main, ["prune", str(tmp_path)]).stdout == "0 files of 0 bytes removed\n"
