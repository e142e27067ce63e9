"""The selected samples of a cache, shard by shard: by mix layer, up to a limit, on one side of the validation split.

A shard's index is read when the shard is asked for, not before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from schemas.errors import UserError
from schemas.manifest import ShardIndex


class Indexed(Protocol):
    """A cache's shard sizes and indexes."""

    url: str
    shard_sizes: np.ndarray

    def index(self, shard: int) -> ShardIndex:
        """Keys, lengths and mix layers of a shard's samples."""

    def load_indexes(self, shards: Iterable[int]) -> None:
        """Load the indexes of these shards concurrently."""


@dataclass(frozen=True)
class Selection:
    """Criteria for samples; by default all are selected."""

    layers: tuple[str, ...] | None = None  # of the data mix
    limit: int | None = None  # the first samples of these layers, in the cache's order
    validation_fraction: float = 0.0
    held_out: bool = False  # the validation side of the split


class Subset:
    """The selected samples of a cache. Raises UserError if mix layers are selected but not stored in the cache."""

    def __init__(self, cache: Indexed, selection: Selection) -> None:
        self.cache = cache
        self.selection = selection
        self.reads_indexes = selection.layers is not None or selection.validation_fraction > 0 or selection.held_out
        self.first = np.concatenate([[0], np.cumsum(cache.shard_sizes)])  # number of each shard's first sample
        self.n_shards, self._in_last = len(cache.shard_sizes), None
        if selection.limit is not None:
            self.n_shards, self._in_last = self._limited(selection.limit)
        self.sizes = cache.shard_sizes[: self.n_shards].copy()  # selected samples per shard; unless reads_indexes: all
        if self._in_last is not None and not self.reads_indexes:
            self.sizes[-1] = self._in_last

    def _limited(self, limit: int) -> tuple[int, int]:
        """Number of shards that hold the first ``limit`` samples, and how many of those the last of them holds."""
        for shard in range(self.n_shards):
            count = len(self._of_layers(shard))
            if limit <= count:
                return shard + 1, limit
            limit -= count
        return self.n_shards, count

    def samples(self, shard: int) -> np.ndarray:
        """Numbers (in the cache) of a shard's selected samples, int64, ascending."""
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
                f"{self.cache.url}: the cache does not store the mix layers of its samples, so `layers` cannot select "
                "by them; leave it out, or cache the teacher again with this version"
            )
        return np.flatnonzero(np.isin(layers, self.selection.layers))

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """Number of tokens of these samples, int64."""
        shards = np.searchsorted(self.first, samples, side="right") - 1
        found = np.empty(len(samples), np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            found[here] = np.array(self.cache.index(shard).num_tokens)[samples[here] - self.first[shard]]
        return found

    def selected(self, at_most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All selected samples, or the first ``at_most``, ascending, and their lengths in tokens; both int64."""
        samples, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard in range(self.n_shards):
            samples.append(self.samples(shard))
            lengths.append(self.lengths(samples[-1]))
            if at_most is not None and sum(map(len, samples)) >= at_most:
                break
        return np.concatenate(samples)[:at_most], np.concatenate(lengths)[:at_most]


def is_held_out(keys: list[str], validation_fraction: float) -> np.ndarray:
    """Which samples are for validation, bool [keys].

    Decided by the hash of each key alone: a sample stays on its side when the cache grows or is merged.
    """
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), dtype=np.uint64, count=len(keys))
    return hashes / 2.0**64 < validation_fraction
