"""Deterministic choice of samples of a cache, and reading them in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import xxhash

from schemas.errors import UserError
from teacher_cache.ahead import map_ahead
from teacher_cache.shards.reader import DECODE_THREADS, CacheReader

BLOCK = 32  # shards whose indexes are fetched in parallel
Read = TypeVar("Read")


def choose(total: int, wanted: int | None) -> np.ndarray:
    """``wanted`` of the numbers below ``total`` (None: all), increasing, int64; deterministic.

    Stratified: one at random from each of ``wanted`` equal slices.
    """
    if wanted is None or wanted >= total:
        return np.arange(total)
    ends = np.arange(wanted + 1, dtype=np.int64) * total // wanted
    offsets = np.random.Generator(np.random.Philox(key=0)).random(wanted)
    return ends[:-1] + (offsets * np.diff(ends)).astype(np.int64)


def choose_samples(reader: CacheReader, wanted: int | None) -> np.ndarray:
    """``choose`` over a cache's samples. Raises UserError when it has none yet."""
    if len(reader) == 0:
        raise UserError(f"{reader.url}: no shard is committed yet; wait for the first one and retry")
    return choose(len(reader), wanted)


def common_samples(a: CacheReader, b: CacheReader) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples that two caches share, in ``a`` and in ``b``, int64, in the order of ``a``.

    Reads all indexes; memory is 8 bytes a sample.
    """
    _, in_a, in_b = np.intersect1d(_key_hashes(a), _key_hashes(b), return_indices=True)
    order = np.argsort(in_a)
    return in_a[order], in_b[order]


def _key_hashes(reader: CacheReader) -> np.ndarray:
    shards = range(len(reader.shard_sizes))
    parts = [np.empty(0, np.uint64)]
    for start in shards[::BLOCK]:
        block = shards[start : start + BLOCK]
        reader.load_indexes(block)
        for shard in block:
            hashes = [xxhash.xxh3_64_intdigest(key.encode()) for key in reader.index(shard).keys]
            parts.append(np.array(hashes, np.uint64))
    return np.concatenate(parts)


def read_each(
    numbers: Sequence[int], read: Callable[[int], Read], advance: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Read]:
    """``read`` of each sample number, in order; a few threads read ahead."""
    for done, found in enumerate(map_ahead(read, numbers, DECODE_THREADS), 1):
        yield found
        advance(done, len(numbers))


def find_samples(reader: CacheReader, keys: Sequence[str]) -> list[int]:
    """Numbers of the samples with these keys. Reads indexes until all are found; raises UserError if one is missing."""
    found: dict[str, int] = {}
    first = 0
    for shard in range(len(reader.shard_sizes)):
        if len(found) == len(set(keys)):
            break
        index = reader.index(shard)
        found |= {key: first + index.keys.index(key) for key in keys if key in index.keys}
        first += len(index.keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(
            f"{reader.url}: no sample {missing[0]!r} among {len(reader)}; keys are 32 hex digits, see "
            "`keys` in shard-*.json"
        )
    return [found[key] for key in keys]
