"""Somebody exchanges samples of a signed cache, within a shard or between two, wherever their sizes are equal."""

import itertools
from pathlib import Path

import pytest

from schemas.errors import CorruptCacheError
from schemas.manifest import Signal
from support.attacked import Signed
from support.forge import change_manifest
from support.signed import sign
from support.synthetic import file_entry, random_shards, write_cache
from teacher_cache.api import open_cache
from teacher_cache.shards.marks import mark_name, mark_text, read_manifest, read_mark, tar_name
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.shard_table import shard_name
from teacher_cache.shards.storage import Storage

SAMPLES = 30  # of each of two shards, so alike that many have equal sizes
Place = tuple[int, int]  # shard and row


@pytest.fixture
def cache(tmp_path: Path) -> Signed:
    url = str(tmp_path / "cache")
    write_cache(url, random_shards([[7] * SAMPLES, [7] * SAMPLES]))
    return Signed(url, sign(url), read_manifest(Storage(url)).digest())


def places(url: str, signal: Signal, within: bool) -> tuple[Place, Place]:
    """Two samples whose payloads have the same size and are not the same."""
    indexes = [read_mark(Storage(url), shard_name(number)).signals[signal] for number in (0, 1)]
    pairs = itertools.product(range(SAMPLES), repeat=2)
    for one, other in pairs:
        second = 0 if within else 1
        same = indexes[0].checksums[one] == indexes[second].checksums[other]
        if indexes[0].sizes[one] == indexes[second].sizes[other] and not same:
            return (0, one), (second, other)
    raise AssertionError("no two payloads of equal size")


def swap(url: str, signal: Signal, within: bool) -> tuple[str, int]:
    """Exchange two payloads; returns the name of the first one's tar, and its row."""
    storage, pair = Storage(url), places(url, signal, within)
    indexes = [read_mark(storage, shard_name(shard)).signals[signal] for shard, _ in pair]
    spans = [slice(i.offsets[row], i.offsets[row] + i.sizes[row]) for i, (_, row) in zip(indexes, pair, strict=True)]
    names = [tar_name(shard_name(shard), signal) for shard, _ in pair]
    payloads = [storage.read(name)[span] for name, span in zip(names, spans, strict=True)]
    for name, span, payload in zip(names, spans, reversed(payloads), strict=True):
        data = bytearray(storage.read(name))
        data[span] = payload
        storage.write(name, bytes(data))
    return names[0], pair[0][1]


@pytest.mark.parametrize("within", [True, False], ids=["a shard", "two shards"])
@pytest.mark.parametrize("signal", ["tokens", "logits"])
def test_exchanged_payloads(cache: Signed, signal: Signal, within: bool) -> None:
    """Two payloads are exchanged and nothing else follows."""
    name, row = swap(cache.url, signal, within)
    reader = CacheReader(cache.url)
    with pytest.raises(CorruptCacheError, match=rf"{name}: sample {reader.keys[row]}: xxh3 of"):
        reader.read_rows([[row]])
    with pytest.raises(CorruptCacheError, match=name):
        _ = getattr(open_cache(cache.url, require_signature=cache.public)[row], signal)


@pytest.mark.parametrize("follows", ["index", "manifest"])
def test_exchanged_payloads_that_an_index_vouches_for(cache: Signed, follows: str) -> None:
    """Two payloads are exchanged, and checksums and digests in the index, then in the manifest, are made to fit."""
    storage, name = Storage(cache.url), shard_name(0)
    (_, one), (_, other) = places(cache.url, "logits", within=True)
    swap(cache.url, "logits", within=True)
    index = read_mark(storage, name)
    member = index.signals["logits"]
    order = list(range(SAMPLES))
    order[one], order[other] = other, one
    tar = storage.read(tar_name(name, "logits"))
    exchanged = member.model_copy(
        update={
            "file": file_entry(tar),
            "checksums": [member.checksums[row] for row in order],
            "digests": b"".join(member.digest(row) for row in order),
        }
    )
    text = mark_text(index.model_copy(update={"signals": {**index.signals, "logits": exchanged}}))
    storage.write(mark_name(name), text)
    if follows == "manifest":
        entry, tar_entry = file_entry(text).model_dump(), file_entry(tar).model_dump()

        def follow(tree: dict[str, object]) -> None:
            tree["shards"][0]["index"] = entry  # type: ignore[index]
            tree["shards"][0]["files"]["logits"] = tar_entry  # type: ignore[index]

        change_manifest(cache.url, follow)
        CacheReader(cache.url).read_logits(one)  # it is consistent, and only the signature tells
        with pytest.raises(CorruptCacheError, match=rf"signatures/{cache.public}\.json: somebody signed manifest "):
            open_cache(cache.url, require_signature=cache.public)
    else:
        with pytest.raises(CorruptCacheError, match=rf"{mark_name(name)}: sha256 is"):
            CacheReader(cache.url).read_logits(one)
