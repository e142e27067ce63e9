"""``cache-tools merge``: the union of caches, without rewriting payloads.

Shards keep their tars under new names: a local tar is hard-linked, which is safe because committed files are never
modified in place; one in an object store is copied by the store. Only indexes are rewritten, because they hold the
shard's name, and shards that contain duplicates. The trade-off: linked tars are not read, so a damaged payload goes
unnoticed here and is found by ``verify``. Sizes, indexes and tables are checked first.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from schemas.errors import UserError
from schemas.manifest import ShardEntry
from teacher_cache.ahead import map_ahead
from teacher_cache.codec.permutation import table_path
from teacher_cache.shards.marks import mark_name, read_table, tar_name, write_manifest, write_mark
from teacher_cache.shards.new_place import check_free, new_cache
from teacher_cache.shards.shard_table import shard_name, signals_of
from teacher_cache.shards.storage import HEAD, VOCABULARY, Storage
from tools.making.derived import copy_samples
from tools.making.duplicates import SampleKeys
from tools.making.link import share_file
from tools.making.source import Source, open_complete, read_index
from tools.making.union import check_fits, common_vocabulary, union_manifest

logger = logging.getLogger(__name__)
Duplicates = Literal["drop", "refuse", "keep"]
MERGING = "cache-tools merge"  # the owner named in the target's lease


@dataclass(frozen=True)
class Merged:
    """The outcome of a merge."""

    sources: int
    shards: int
    samples: int
    tokens: int
    duplicates: int  # samples that repeat an earlier one's key
    duplicates_dropped: int
    shards_rewritten: int  # to drop duplicates
    shards_left_out: int  # all of whose samples were dropped
    tars_shared: int  # hard-linked, or copied by the object store
    tars_copied: int  # read and written


class _Shard(NamedTuple):
    """A shard of a source."""

    source: Source
    entry: ShardEntry


class _Task(NamedTuple):
    """A shard to write."""

    old: _Shard
    name: str
    rows: list[int] | None  # samples to keep of the old shard; None: all


class _Done(NamedTuple):
    """A written shard."""

    entry: ShardEntry
    shared: int  # tars linked, or copied by the store
    copied: int  # tars read and written


def merge(
    sources: Sequence[str],
    target: str,
    duplicates: Duplicates = "drop",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write the union of complete caches to ``target``; ``advance(steps done, steps in all)``, two steps a shard.

    Among samples with the same key, the first in the order of ``sources`` is kept. Raises UserError when the caches are
    incompatible (naming the settings), one of their files is missing or wrong, ``target`` is not empty, or there are
    duplicates and ``duplicates`` is "refuse"; nothing is then left at ``target``.
    """
    settings = list(sources), duplicates
    check_free(target, MERGING, *settings)  # fail early: the other checks may take long
    caches = list(map_ahead(open_complete, sources))
    for cache in caches[1:]:
        check_fits(caches[0].manifest, sources[0], cache.manifest, cache.storage.url)
    tables = _tables(caches)
    shards = [_Shard(cache, entry) for cache in caches for entry in cache.manifest.shards]
    keys = SampleKeys()
    for done, index in enumerate(map_ahead(lambda shard: read_index(*shard), shards), 1):
        keys.add(index.keys)
        advance(done, 2 * len(shards))
    repeated_N = keys.repeated()
    n_repeated = int(repeated_N.sum())
    if duplicates == "refuse" and n_repeated:
        raise _refusal(shards, keys, repeated_N)
    if duplicates == "keep":
        repeated_N[:] = False
    tasks = list(_tasks(shards, repeated_N))
    written: list[_Done] = []
    with new_cache(target, MERGING, *settings) as storage:
        for digest, source in tables.items():
            name = table_path(digest)
            share_file(source.storage, name, storage, name, source.manifest.tables[digest])
        if caches[0].manifest.head is not None:
            share_file(caches[0].storage, HEAD, storage, HEAD, caches[0].manifest.head.file)
        vocabulary = common_vocabulary([cache.manifest for cache in caches])
        if vocabulary is not None:
            share_file(caches[0].storage, VOCABULARY, storage, VOCABULARY, vocabulary)
        elif any(cache.manifest.vocabulary is not None for cache in caches):
            older = ", ".join(cache.storage.url for cache in caches if cache.manifest.vocabulary is None)
            logger.warning("the union has no %s, as %s has none; `cache-tools upgrade` adds it", VOCABULARY, older)
        with closing(map_ahead(lambda task: _write_shard(task, storage), tasks)) as results:
            for one in results:
                written.append(one)
                advance(len(shards) + len(written), len(shards) + len(tasks))
        manifest = union_manifest(
            [cache.manifest for cache in caches],
            [one.entry for one in written],
            {digest: source.manifest.tables[digest] for digest, source in tables.items()},
            int(repeated_N.sum()),
        )
        write_manifest(storage, manifest)
    return Merged(
        sources=len(caches),
        shards=len(tasks),
        samples=manifest.totals.samples,
        tokens=manifest.totals.tokens,
        duplicates=n_repeated,
        duplicates_dropped=int(repeated_N.sum()),
        shards_rewritten=sum(task.rows is not None for task in tasks),
        shards_left_out=len(shards) - len(tasks),
        tars_shared=sum(one.shared for one in written),
        tars_copied=sum(one.copied for one in written),
    )


def _tables(caches: Sequence[Source]) -> dict[str, Source]:
    """The code tables, checked: digest → first cache that has it."""
    found: dict[str, Source] = {}
    for cache in caches:
        for digest in cache.manifest.tables:
            if digest not in found:
                read_table(cache.storage, digest, cache.manifest.teacher.vocab_size)
                found[digest] = cache
    return found


def _tasks(shards: Sequence[_Shard], dropped_N: np.ndarray) -> Iterator[_Task]:
    """Number the remaining shards, and list the samples to keep where some are dropped."""
    number = first = 0
    for shard in shards:
        dropped_S = dropped_N[first : first + shard.entry.samples]
        first += shard.entry.samples
        if dropped_S.all():
            continue
        yield _Task(shard, shard_name(number), np.flatnonzero(~dropped_S).tolist() if dropped_S.any() else None)
        number += 1


def _write_shard(task: _Task, target: Storage) -> _Done:
    """Write a shard: tars first, the commit mark last."""
    (source, manifest), entry = task.old
    index = read_index(*task.old)
    if task.rows is not None:
        return _Done(copy_samples(source, target, index, task.rows, signals_of(manifest), task.name), 0, 0)
    copied = sum(
        share_file(source, tar_name(entry.name, signal), target, tar_name(task.name, signal), member.file)
        for signal, member in index.signals.items()
    )
    renamed = index.model_copy(update={"name": task.name})
    return _Done(write_mark(target, renamed), len(index.signals) - copied, copied)


def _refusal(shards: Sequence[_Shard], keys: SampleKeys, repeated_N: np.ndarray) -> UserError:
    later = int(repeated_N.argmax())
    ends = np.cumsum([shard.entry.samples for shard in shards])
    first, second = np.searchsorted(ends, [keys.first_like(later), later], side="right").tolist()
    key = read_index(*shards[second]).keys[later - int(ends[second])]  # a negative index, from the shard's end
    where = [shards[shard].source.storage.where(mark_name(shards[shard].entry.name)) for shard in (first, second)]
    return UserError(
        f"{int(repeated_N.sum())} duplicate samples, the first of them {key}, in {where[0]} and {where[1]}; use "
        "--duplicates drop to leave out the later ones, or keep"
    )
