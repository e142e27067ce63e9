"""Large caches list their shards in a columnar file next to the manifest, and otherwise behave like small ones."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest
from support.forge import change_manifest
from support.plain_decoder import read_samples
from support.synthetic import random_shards, write_cache
from teacher_cache.codec.message import read_columns, write_batch
from teacher_cache.shards import shard_table as table_module
from teacher_cache.shards.marks import assemble, read_manifest, remove_garbage, up_to_date_manifest, write_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.shard_table import ShardTable, read_shard_table, table_file, with_lists
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify
from tools.looking.inspect import describe

SHARDS = random_shards([[5, 3], [7], [2, 4, 6]])


@pytest.fixture
def small(tmp_path: Path) -> Manifest:
    """The manifest of the same cache as ``large``, with its lists."""
    return write_cache(str(tmp_path / "small"), SHARDS)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache whose three shards are too many for its manifest."""
    monkeypatch.setattr(table_module, "MAX_LISTED_UNITS", 2)
    url = str(tmp_path / "large")
    write_manifest(Storage(url), write_cache(url, SHARDS))
    return url


def test_lists_round_trip_through_the_table(large: str, small: Manifest) -> None:
    storage = Storage(large)
    stored = read_manifest(storage)
    assert stored.units == stored.shards == []
    assert stored.shard_table is not None
    whole = with_lists(storage, stored)
    assert (whole.units, whole.shards) == (small.units, small.shards)
    assert whole.digest() == stored.digest() != small.digest()
    assert table_file(stored.shard_table) in storage.names()
    assert remove_garbage(storage, whole) == []


def test_it_is_read_verified_and_described_as_a_small_one(large: str, small: Manifest, tmp_path: Path) -> None:
    wanted, found = CacheReader(str(tmp_path / "small")), CacheReader(large)
    assert found.shard_sizes.tolist() == [2, 1, 3]
    assert found.keys == wanted.keys
    rows = [[position] for position in range(6)]
    for name, array in vars(wanted.read_rows(rows)).items():
        np.testing.assert_array_equal(getattr(found.read_rows(rows), name), array, err_msg=name)
    assert list(read_samples(Path(large))) == wanted.keys, "as the format page says"
    entries = ShardTable(found.manifest, Storage(large))
    assert [entries.entry(shard) for shard in range(len(entries))] == small.shards
    assert verify(large).problems == []
    ours, theirs = describe(large), describe(str(tmp_path / "small"))
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing == {"cache", "manifest_digest", "bytes", "bytes_per_token"}
    apart = {name for name, size in ours["bytes"].items() if size != theirs["bytes"].get(name)}
    assert apart == {"tables", "total"}, "the lists stand in a file of their own"


def test_nothing_but_manifest_and_table_is_read_at_opening(large: str) -> None:
    for path in Path(large).glob("shard-*"):
        path.unlink()
    reader = CacheReader(large)
    assert len(reader) == 6
    with pytest.raises(CorruptCacheError, match=r"shard-000001\.json: the file is missing"):
        reader.read_tokens(2)


def test_an_unfinished_cache_goes_on_from_its_marks(large: str, small: Manifest) -> None:
    storage = Storage(large)
    mark = Path(large) / "shard-000001.json"
    content = mark.read_bytes()
    mark.unlink()
    nothing = read_manifest(storage).totals.model_copy(update={"samples": 0, "tokens": 0, "bytes": {}})
    plan = small.model_copy(update={"complete": False, "shards": [], "tables": {}, "totals": nothing})
    write_manifest(storage, plan)
    assert len(CacheReader(large)) == 5
    partial = write_manifest(storage, assemble(storage, read_manifest(storage)))
    assert [entry.name for entry in partial.shards] == ["shard-000000", "shard-000002"]
    mark.write_bytes(content)
    whole = up_to_date_manifest(storage)
    assert whole.shards == small.shards
    written = write_manifest(storage, whole)
    removed = remove_garbage(storage, written)
    assert [name for name in removed if not name.endswith(".arrow")] == []
    assert CacheReader(large).keys == [tokens.key for shard in SHARDS for tokens, _ in shard]


def changed(large: str, change: dict[str, list[object]]) -> None:
    """Change columns of the table, and update the checksum in the manifest."""
    storage = Storage(large)
    manifest = read_manifest(storage)
    table = read_shard_table(storage, manifest)
    for name, values in change.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    (batch,) = table.combine_chunks().to_batches()
    replace(large, write_batch(batch))


def replace(large: str, data: bytes) -> None:
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (Path(large) / "tables" / f"{entry['sha256']}.arrow").write_bytes(data)
    change_manifest(large, lambda tree: tree.update(shard_table=entry))


WRONG = {
    "numbers are not ascending": {"number": [0, 2, 1]},
    "a shard has no sample": {"samples": [2, 0, 4]},
    "samples do not add up to the manifest's totals": {"samples": [2, 1, 4]},
    "tokens do not add up to the manifest's totals": {"tokens": [8, 7, 13]},
    "although the cache is complete": {"index_bytes": [1, 1, 0], "samples": [3, 3, 1], "tokens": [20, 7, 1]},
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_table_that_contradicts_the_manifest_is_refused(large: str, problem: str) -> None:
    changed(large, WRONG[problem])
    with pytest.raises(CorruptCacheError, match=rf"tables/[0-9a-f]+\.arrow: .*{problem}"):
        CacheReader(large)


def test_a_changed_missing_or_compressed_table_is_refused(large: str) -> None:
    storage = Storage(large)
    manifest = read_manifest(storage)
    assert manifest.shard_table is not None
    path = storage.local_path(table_file(manifest.shard_table))
    data = path.read_bytes()
    table = read_shard_table(storage, manifest)
    path.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(CorruptCacheError, match=r"\.arrow: sha256 is"):
        CacheReader(large)
    path.unlink()
    with pytest.raises(CorruptCacheError, match=r"\.arrow: the file is missing"):
        CacheReader(large)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    for wrong in (sink.getvalue().to_pybytes(), b"", data[:100], data[8:], data + data):
        replace(large, wrong)
        with pytest.raises(CorruptCacheError, match=r"\.arrow: "):
            CacheReader(large)


def test_flipped_bits_of_a_table_are_errors_of_ours_or_harmless(large: str) -> None:
    """An attacker who modifies a table can also fix its checksum."""
    storage = Storage(large)
    manifest = read_manifest(storage)
    table = read_shard_table(storage, manifest)
    (batch,) = table.to_batches()
    data = write_batch(batch)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with suppress(CorruptCacheError):
            assert read_columns(table.schema, bytes(broken)).num_rows <= len(data)
