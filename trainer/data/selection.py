"""The samples of one cache that a run uses, shard by shard: those of some layers of the data mix, at most so many of
them, on one side of the split into training and validation. An index is read when its shard is asked for, not before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from schemas.errors import UserError
from schemas.manifest import ShardIndex


class Indexed(Protocol):
    """What is needed of a cache: how many samples each shard has, and their keys, lengths and layers when asked."""

    url: str
    shard_sizes: np.ndarray

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard."""

    def load_indexes(self, shards: Iterable[int]) -> None:
        """The indexes of these shards will be asked for next."""


@dataclass(frozen=True)
class Selection:
    """Which samples count; all of them unless something else is said."""

    layers: tuple[str, ...] | None = None
    limit: int | None = None  # of the samples of these layers, the first ones in the cache's order
    validation_fraction: float = 0.0
    held_out: bool = False  # which side of that split


class Subset:
    """The selected samples of a cache. Raises UserError where a layer is asked for and the cache does not say."""

    def __init__(self, cache: Indexed, selection: Selection) -> None:
        self.cache = cache
        self.selection = selection
        self.reads_indexes = selection.layers is not None or selection.validation_fraction > 0 or selection.held_out
        self.first = np.concatenate([[0], np.cumsum(cache.shard_sizes)])  # sample of each shard
        self.n_shards, self._in_last = len(cache.shard_sizes), None
        if selection.limit is not None:
            self.n_shards, self._in_last = self._limited(selection.limit)
        self.sizes = cache.shard_sizes[: self.n_shards].copy()  # of the shards; all selected unless reads_indexes
        if self._in_last is not None and not self.reads_indexes:
            self.sizes[-1] = self._in_last

    def _limited(self, limit: int) -> tuple[int, int]:
        """How many shards hold the first ``limit`` samples of the layers, and how many of them the last one holds."""
        for shard in range(self.n_shards):
            count = len(self._of_layers(shard))
            if limit <= count:
                return shard + 1, limit
            limit -= count
        return self.n_shards, count

    def samples(self, shard: int) -> np.ndarray:
        """The selected samples of a shard by their number in the cache, int64, rising."""
        rows = self._of_layers(shard)
        if self._in_last is not None and shard == self.n_shards - 1:
            rows = rows[: self._in_last]
        fraction, held_out = self.selection.validation_fraction, self.selection.held_out
        if fraction > 0 or held_out:
            keys = self.cache.index(shard).keys
            rows = rows[is_held_out([keys[row] for row in rows.tolist()], fraction) == held_out]
        return self.first[shard] + rows

    def _of_layers(self, shard: int) -> np.ndarray:
        if self.selection.layers is None:
            return np.arange(self.cache.shard_sizes[shard])
        layers = self.cache.index(shard).layers
        if layers is None:
            raise UserError(
                f"{self.cache.url}: the cache does not say which layer of the data mix its samples are of, so `layers` "
                "cannot choose among them; leave it out, or cache the teacher again with this version"
            )
        return np.flatnonzero(np.isin(layers, self.selection.layers))

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """Tokens of these samples, int64."""
        shards = np.searchsorted(self.first, samples, side="right") - 1
        found = np.empty(len(samples), np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            found[here] = np.array(self.cache.index(shard).num_tokens)[samples[here] - self.first[shard]]
        return found

    def selected(self, at_most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All selected samples, or the first of them, rising, and their tokens; both int64. Reads their indexes."""
        samples, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard in range(self.n_shards):
            samples.append(self.samples(shard))
            lengths.append(self.lengths(samples[-1]))
            if at_most is not None and sum(map(len, samples)) >= at_most:
                break
        return np.concatenate(samples)[:at_most], np.concatenate(lengths)[:at_most]


def is_held_out(keys: list[str], validation_fraction: float) -> np.ndarray:
    """Which samples are for validation, bool.

    A key decides for itself by its hash: a sample stays on its side when the cache grows or is merged.
    """
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), dtype=np.uint64, count=len(keys))
    return hashes / 2.0**64 < validation_fraction
