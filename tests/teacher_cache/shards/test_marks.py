"""The committed shards follow from the existing marks, at every moment of a run."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.queue_makespan import counted
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, Totals
from schemas.strict import FORMAT_VERSION
from support.forge import SHARD, Tree, change_index, change_manifest, declare
from support.synthetic import random_shards, write_cache
from teacher_cache.codec.permutation import build_code_table, encode_table, table_digest, table_path
from teacher_cache.shards.marks import (
    assemble,
    committed,
    mark_name,
    mark_names,
    read_manifest,
    read_mark,
    read_table,
    remove_garbage,
    up_to_date_manifest,
    write_mark,
)
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage

LENGTHS = [[5, 3], [7], [2, 4, 6]]
NAMES = [f"shard-00000{n}" for n in range(3)]


def plan_of(manifest: Manifest) -> Manifest:
    """The manifest before anything is committed."""
    nothing = Totals(samples=0, tokens=0, bytes={}, index_bytes=0)
    return manifest.model_copy(update={"complete": False, "shards": [], "tables": {}, "totals": nothing})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_the_manifest_follows_from_the_marks(url: str) -> None:
    manifest = write_cache(url, random_shards(LENGTHS))
    storage = Storage(url)
    assert manifest.complete
    assert read_manifest(storage).to_json() == manifest.to_json()
    assert assemble(storage, plan_of(manifest)) == manifest
    assert assemble(storage, manifest) == manifest
    sizes = storage.sizes()
    assert manifest.totals.samples == 6
    assert manifest.totals.tokens == 27
    assert manifest.totals.bytes == {
        signal: sum(sizes[f"{name}.{signal}.tar"] for name in NAMES) for signal in ("tokens", "logits")
    }
    assert manifest.totals.index_bytes == sum(sizes[f"{name}.json"] for name in NAMES)
    assert [(entry.name, entry.samples, entry.tokens) for entry in manifest.shards] == [
        ("shard-000000", 2, 8), ("shard-000001", 1, 7), ("shard-000002", 3, 12),
    ]  # fmt: skip
    assert [table_path(digest) for digest in manifest.tables] == [name for name in sizes if "tables" in name]


def test_many_marks_in_a_store_are_read_in_the_order_of_the_plan(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one request each, and those of the manifest at hand with none; one that is missing by then is named."""
    manifest = write_cache(s3_url, random_shards([[n % 5 + 1] for n in range(20)]))
    assert manifest.complete
    storage, plan = Storage(s3_url), plan_of(manifest)
    some = plan.model_copy(update={"shards": manifest.shards[3::2], "tables": manifest.tables})
    with counted() as requests:
        assert assemble(storage, some) == manifest
    assert requests["get_object"] == 20 - len(some.shards)
    assert requests["head_object"] == 0
    assert assemble(storage, plan) == manifest
    sizes = storage.sizes()
    storage.delete(mark_name(manifest.units[17].name))
    monkeypatch.setattr(storage, "sizes", lambda: sizes)
    with pytest.raises(CorruptCacheError, match=r"shard-000017\.json: the file is missing"):
        assemble(storage, plan)


@pytest.mark.parametrize("present", [set(s) for n in range(4) for s in itertools.combinations(range(3), n)])
@pytest.mark.parametrize("listed", [0, 1])
def test_an_incomplete_cache_is_readable_with_any_set_of_marks(url: str, present: set[int], listed: int) -> None:
    """The manifest on disk may list fewer shards than are committed: workers finish in any order."""
    shards = random_shards(LENGTHS)
    manifest = write_cache(url, shards)
    storage = Storage(url)
    for n in {0, 1, 2} - present:
        storage.delete(mark_name(NAMES[n]))
    known = manifest.shards[:1] if listed and 0 in present else []
    update = {"shards": known, "tables": manifest.tables if known else {}}
    storage.write(MANIFEST, plan_of(manifest).model_copy(update=update).to_json().encode())
    found = up_to_date_manifest(storage)
    assert [entry.name for entry in found.shards] == [NAMES[n] for n in sorted(present)]
    assert found.complete == (len(present) == 3)
    assert committed(storage, found) == [NAMES[n] for n in sorted(present)]
    reader = CacheReader(url)
    assert reader.keys == [tokens.key for n in sorted(present) for tokens, _ in shards[n]]
    for position in range(len(reader)):
        assert reader.read_tokens(position).key == reader.keys[position]
        reader.read_logits(position)


def test_a_reader_keeps_the_state_it_was_opened_with(url: str) -> None:
    shards = random_shards(LENGTHS)
    complete = write_cache(url, shards)
    mark = read_mark(Storage(url), NAMES[2])
    write_cache(url, shards, commit=2)
    Storage(url).delete(mark_name(NAMES[2]))
    Storage(url).write(MANIFEST, plan_of(complete).to_json().encode())
    before = CacheReader(url)
    write_mark(Storage(url), mark)
    assert (len(before), len(CacheReader(url))) == (3, 6)
    assert len(CacheReader(url, manifest=before.manifest)) == 3


def test_an_interrupted_run_lists_its_plan_and_what_it_committed(url: str) -> None:
    manifest = write_cache(url, random_shards(LENGTHS), commit=2)
    assert not manifest.complete
    assert [unit.name for unit in manifest.units] == NAMES
    assert [entry.name for entry in manifest.shards] == NAMES[:2]
    assert mark_names(Storage(url)) == ["shard-000000.json", "shard-000001.json"]


FOREIGN = [
    "notes.txt",
    "shard-1.json",
    "shard-000000.json.bak",
    "my-shard-000009.json",
    "model.tar",
    "tables/notes.txt",
]
STALE = ["shard-000009.json", "shard-000009.logits.tar", "shard-000009.tokens.tar", f"tables/{'f' * 64}.zst"]
TEMPORARY = [".tmp-w1-shard-000001.json", ".tmp-w2-shard-000002.json", ".tmp-manifest.json"]


def litter(url: str) -> None:
    for name in (*FOREIGN, *STALE, *TEMPORARY):
        path = Path(url) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_garbage_of_a_complete_cache(url: str) -> None:
    manifest = write_cache(url, random_shards(LENGTHS))
    before = set(Storage(url).names())
    litter(url)
    assert set(remove_garbage(Storage(url), manifest)) == {*STALE, *TEMPORARY}
    assert set(Storage(url).names()) == before | set(FOREIGN)
    assert remove_garbage(Storage(url), manifest) == []
    CacheReader(url).read_logits(5)


def test_garbage_of_an_incomplete_cache_is_only_a_units_temporaries(url: str) -> None:
    manifest = write_cache(url, random_shards(LENGTHS), commit=1)
    litter(url)
    before = set(Storage(url).names())
    assert remove_garbage(Storage(url), manifest, "shard-000001") == [".tmp-w1-shard-000001.json"]
    assert set(Storage(url).names()) == before - {".tmp-w1-shard-000001.json"}
    assert remove_garbage(Storage(url), manifest, "shard-000003") == remove_garbage(Storage(url), manifest) == []


def test_without_a_manifest_every_own_name_is_garbage(url: str) -> None:
    write_cache(url, random_shards([[3]]))
    litter(url)
    Storage(url).delete(MANIFEST)
    remove_garbage(Storage(url), None)
    assert set(Storage(url).names()) == set(FOREIGN)


def test_a_folder_without_a_manifest_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: not found, so this is not a cache"):
        CacheReader(str(tmp_path))


def test_a_newer_format_is_refused_with_what_to_do(url: str) -> None:
    write_cache(url, random_shards([[3]]))
    change_manifest(url, lambda tree: tree.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(UserError, match=rf"manifest\.json: format_version {FORMAT_VERSION + 1} is newer .* upgrade"):
        CacheReader(url)


def set_in(*path: str | int, value: object) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value(node[path[-1]]) if callable(value) else value

    return change


FAR = set_in("signals", "logits", "offsets", 1, value=10**9)
HUGE = set_in("signals", "tokens", "sizes", 0, value=2**52)
WRONG_INDEX = {
    "duplicate keys": (set_in("keys", value=lambda keys: [keys[0], keys[0]]), "shard-000000.json", "distinct"),
    "short list": (set_in("num_tokens", value=[5]), "shard-000000.json", "one entry per key"),
    "short offsets": (
        set_in("signals", "logits", "offsets", value=[512]),
        "shard-000000.json",
        "signals.logits.offsets",
    ),
    "offset beyond the file": (FAR, "shard-000000.logits.tar", "sample {key1} ends beyond the file"),
    "size beyond the file": (HUGE, "shard-000000.tokens.tar", "sample {key0} ends beyond the file"),
    "negative offset": (set_in("signals", "logits", "offsets", 0, value=-1), "shard-000000.json", "offsets"),
    "wrong size": (
        set_in("signals", "logits", "file", "bytes", value=7),
        "shard-000000.logits.tar",
        "the manifest says 7",
    ),
    "another name": (set_in("name", value="shard-000001"), "shard-000000.json", "index of shard-000001"),
    "more tokens": (set_in("num_tokens", value=[5, 4]), "shard-000000.json", "2 samples of 9 tokens"),
    "too long": (set_in("num_tokens", value=[10**6, 3]), "shard-000000.json", "tokens"),
    "an unlisted table": (set_in("table", value="e" * 64), "shard-000000.json", "not in the manifest"),
    "a missing signal": (lambda tree: tree["signals"].pop("logits"), "shard-000000.logits.tar", "no logits signal"),
    "an unknown key": (set_in("more", value=1), "shard-000000.json", "more"),
    "a newer index": (set_in("format_version", value=FORMAT_VERSION + 1), "shard-000000.json", "newer"),
}


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_an_index_that_contradicts_the_cache_is_refused(url: str, name: str) -> None:
    shards = random_shards([[5, 3]])
    write_cache(url, shards)
    change, file, text = WRONG_INDEX[name]
    change_index(url, lambda tree: None)
    CacheReader(url).index(0)  # merely rewriting it is accepted
    change_index(url, change)
    keys = {f"key{n}": tokens.key for n, (tokens, _) in enumerate(shards[0])}
    with pytest.raises(CorruptCacheError) as caught:
        CacheReader(url).index(0)
    assert str(caught.value).startswith(f"{url}/{file}: ")
    assert text.format(**keys) in str(caught.value)


def test_a_sample_above_the_manifests_longest_is_refused(url: str) -> None:
    """Otherwise an index could make a reader allocate without limit."""
    write_cache(url, random_shards([[5, 3]]))
    change_index(url, set_in("num_tokens", value=[2**23, 2**23]))
    declare(url, tokens=2**24)
    with pytest.raises(
        CorruptCacheError, match=rf"{SHARD}\.json: a sample of 8388608 tokens, the manifest says at most"
    ):
        CacheReader(url).read_rows([[0]])


def test_an_index_of_another_digest_is_refused(url: str) -> None:
    write_cache(url, random_shards([[5, 3]]))
    path = Path(url) / f"{SHARD}.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(CorruptCacheError, match=rf"{SHARD}\.json: sha256 is [0-9a-f]+, the manifest says [0-9a-f]+"):
        CacheReader(url).read_tokens(0)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptCacheError, match=rf"{SHARD}\.json: [0-9]+ bytes, the manifest says [0-9]+"):
        CacheReader(url)


@pytest.mark.parametrize(
    "change", [(b'"tokens": 8', b'"tokens": 9'), (b"synthetic", b"synthesis"), (b'"sha256": "', b"")]
)
def test_a_changed_manifest_is_found(url: str, change: tuple[bytes, bytes]) -> None:
    write_cache(url, random_shards([[5, 3]]))
    path = Path(url) / MANIFEST
    sound = path.read_bytes()
    if change[1]:
        assert change[0] in sound
        path.write_bytes(sound.replace(*change, 1))
    else:  # the sha256 is removed
        before, _, after = sound.rpartition(change[0])
        path.write_bytes(before + change[0] + after[64:])
    with pytest.raises(CorruptCacheError, match=r"manifest\.json: its sha256 is [0-9a-f]{64}, the file says"):
        CacheReader(url)


@pytest.mark.parametrize("file", [f"{SHARD}.json", f"{SHARD}.tokens.tar", f"{SHARD}.logits.tar"])
def test_a_missing_file_is_named(url: str, file: str) -> None:
    write_cache(url, random_shards([[5, 3]]))
    Storage(url).delete(file)
    with pytest.raises(CorruptCacheError, match=rf"{re.escape(file)}: the file is missing"):
        CacheReader(url)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}', b"[" * 100_000])
def test_a_manifest_or_mark_that_is_not_json_is_refused(url: str, data: bytes) -> None:
    manifest = write_cache(url, random_shards([[5]]))
    Storage(url).write(MANIFEST, data)
    with pytest.raises(UserError, match=r"manifest\.json"):
        CacheReader(url)
    Storage(url).write(MANIFEST, plan_of(manifest).to_json().encode())
    Storage(url).write(mark_name(SHARD), data)
    with pytest.raises(CorruptCacheError, match=rf"{SHARD}\.json"):
        CacheReader(url)


def replace_table(url: str, table: np.ndarray) -> str:
    """Make the first shard name another table, consistently."""
    digest = table_digest(table)
    entry = Storage(url).write(table_path(digest), encode_table(table))
    change_index(url, set_in("table", value=digest))
    change_manifest(url, set_in("tables", value={digest: entry.model_dump()}))
    return digest


def test_a_table_that_is_missing_wrong_or_oversized_is_refused(url: str) -> None:
    write_cache(url, random_shards([[5, 3]]))
    no_permutation = build_code_table(np.ones(300))
    no_permutation[0] = no_permutation[1]
    digest = replace_table(url, no_permutation)
    file = rf"tables/{digest}\.zst: "
    with pytest.raises(CorruptCacheError, match=file + ".*not a permutation"):
        CacheReader(url).read_logits(0)
    Storage(url).write(table_path(digest), encode_table(np.arange(300)))
    with pytest.raises(CorruptCacheError, match=file + ".*digest"):
        CacheReader(url).read_rows([[0], [1]])
    Storage(url).write(table_path(digest), bytes(100_000))
    with pytest.raises(CorruptCacheError, match=file + "100000 bytes, at most"):
        read_table(Storage(url), digest, 300)
    Storage(url).delete(table_path(digest))
    with pytest.raises(CorruptCacheError, match=file + "the file is missing"):
        CacheReader(url).read_logits(0)
    assert CacheReader(url, signals=("tokens",)).read_tokens(0)  # which needs no table


def test_equal_caches_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_cache(str(tmp_path / name), random_shards(LENGTHS))
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["complete"]
