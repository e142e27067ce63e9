"""Signed caches, and payloads that somebody put in the place of others."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.manifest import Signal
from support.second_preimage import second_preimage
from support.signed import sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest, read_mark, tar_name
from teacher_cache.shards.shard_table import shard_name
from teacher_cache.shards.storage import Storage

VOCABULARY = 61
LENGTHS = [[90, 80], [70, 60, 90], [50]]


class Signed(NamedTuple):
    """A cache, the public key of who signed it, and its digest."""

    url: str
    public: str
    digest: str


def signed_cache(url: object, digests: bool = True) -> Signed:
    """A cache of three shards; without ``digests`` it is of format 1.0."""
    write_cache(str(url), random_shards(LENGTHS, VOCABULARY), VOCABULARY, digests=digests)
    public = sign(str(url))
    return Signed(str(url), public, read_manifest(Storage(str(url))).digest())


def change_member(url: str, signal: Signal, shard: int, row: int, change: Callable[[bytes], bytes]) -> str:
    """Put other bytes of the same size in a payload's place; nothing else follows. Returns the tar's name."""
    storage, name = Storage(url), tar_name(shard_name(shard), signal)
    member = read_mark(storage, shard_name(shard)).signals[signal]
    start, end = member.offsets[row], member.offsets[row] + member.sizes[row]
    data = storage.read(name)
    forged = change(data[start:end])
    assert len(forged) == end - start
    storage.write(name, data[:start] + forged + data[end:])
    return name


def replace_payload(url: str, signal: Signal = "logits", shard: int = 0, row: int = 0) -> str:
    """Put a second preimage of its xxh3-64 in a payload's place. Returns the tar's name."""
    return change_member(url, signal, shard, row, second_preimage)
