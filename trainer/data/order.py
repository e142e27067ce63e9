"""The order of the rows of one cache: a pure function of the cache, the seed and the epoch.

It does not depend on ranks or worker processes. There is no shuffle buffer: shards are permuted, and the samples of a
few shards at a time (a *group*) are shuffled together, so that a reader has only those shards open. One group is
computed at a time.

A row is one sample, or several packed ones. Epochs follow each other seamlessly and without end, so the state needed to
resume is one integer, the number of rows consumed, and nothing before it is read again. Where a group's sizes do not
give its number of rows (packing, a split, a filter), finding a row takes computing the groups before it, unless a later
starting point is known: the ``Place`` in a checkpoint.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from schemas.errors import UserError
from trainer.data.packing import pack
from trainer.data.selection import Subset

PACKING_WINDOW = 4096
"""Samples packed together: enough to fill rows well, few enough to keep the order random."""
GROUPS_KEPT = 3


@dataclass(frozen=True)
class Shuffle:
    """Parameters of an epoch's order. Caches of one corpus are read in the same order, whatever signals they store."""

    seed: int
    shards_mixed: int  # shards whose samples are shuffled together

    def random(self, count: int, epoch: int, what: str) -> np.ndarray:
        """``count`` random uint64: a pure function of the seed and the arguments.

        Raw Philox output, which numpy keeps stable across versions; the methods of its ``Generator`` may change
        (NEP 19).
        """
        key = xxhash.xxh3_128_intdigest(f"{self.seed} {epoch} {what}".encode())
        return np.random.Philox(key=[key >> 64, key & (1 << 64) - 1]).random_raw(count)

    def permutation(self, count: int, epoch: int, what: str) -> np.ndarray:
        """A permutation of range(count), int64."""
        return np.argsort(self.random(count, epoch, what), kind="stable")


class Place(NamedTuple):
    """Position of a group in the order of a cache."""

    first_row: int
    epoch: int
    group: int


START = Place(0, 0, 0)


class Group(NamedTuple):
    """The rows of a group: row r holds ``samples[offsets[r]:offsets[r + 1]]``."""

    samples: np.ndarray  # int64, numbers in the cache
    offsets: np.ndarray  # int64 [rows + 1]


class CacheOrder:
    """The rows of one cache, epoch after epoch, without end."""

    def __init__(self, subset: Subset, shuffle: Shuffle, pack_tokens: int | None = None, known: Place = START) -> None:
        """``pack_tokens`` None: one sample per row. ``known``: a place in this same order, to start from."""
        self.subset = subset
        self.shuffle = shuffle
        self.pack_tokens = pack_tokens
        self.n_groups = -(-subset.n_shards // shuffle.shards_mixed)
        self._sizes = subset.sizes
        self._counted = not subset.reads_indexes and pack_tokens is None  # a group's size is its number of rows
        self._places = sorted({START, known})
        self._last = START, 0  # the group found last, and its end row
        self._prepare()

    def _prepare(self) -> None:
        self._shards = lru_cache(2)(self._shards_of)
        self._group = lru_cache(GROUPS_KEPT)(self._make_group)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_shards", "_group")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def has_rows(self) -> bool:
        """Whether any sample is selected. If not, the other methods must not be called."""
        return any(self._count(0, group) for group in range(self.n_groups))

    def rows(self, start: int, stop: int) -> list[list[int]]:
        """The samples of the rows [start, stop)."""
        found: list[list[int]] = []
        while start < stop:
            place = self.place(start)
            group = self._group(place.epoch, place.group)
            first, last = start - place.first_row, min(stop - place.first_row, len(group.offsets) - 1)
            offsets = group.offsets[first : last + 1]
            samples = group.samples[offsets[0] : offsets[-1]].tolist()
            if len(samples) == last - first:
                found += [[sample] for sample in samples]
            else:
                bounds = (offsets - offsets[0]).tolist()
                found += [samples[bounds[r] : bounds[r + 1]] for r in range(last - first)]
            start += last - first
        return found

    def ahead(self, row: int, count: int) -> np.ndarray:
        """Up to ``count`` samples from a row on, fewer where the next group ends first; int64."""
        place = self.place(row)
        group = self._group(place.epoch, place.group)
        samples = group.samples[group.offsets[row - place.first_row] :][:count]
        if len(samples) < count:
            following = self._following(place)
            more = self._group(following.epoch, following.group).samples[: count - len(samples)]
            samples = np.concatenate([samples, more])
        return samples

    def rows_in_epoch(self, epoch: int) -> int:
        """Number of rows of an epoch; computes all of its groups unless their sizes give it."""
        return sum(self._count(epoch, group) for group in range(self.n_groups))

    def epoch(self, row: int) -> float:
        """Epochs completed by the rows before ``row``: passes over the samples."""
        place = self.place(row)
        shards, mixed = self._shards(place.epoch), self.shuffle.shards_mixed
        before = self._sizes[shards[: place.group * mixed]].sum()
        group = self._sizes[shards[place.group * mixed : (place.group + 1) * mixed]].sum()
        share = (row - place.first_row) / self._count(place.epoch, place.group)
        return place.epoch + float((before + share * group) / self._sizes.sum())

    def place(self, row: int) -> Place:
        """The group that contains a row."""
        place, end = self._last
        if place.first_row <= row < end:
            return place
        place = self._places[bisect_right(self._places, (row + 1,)) - 1]
        while row >= (end := place.first_row + self._count(place.epoch, place.group)):
            place = self._following(place)
            if place > self._places[-1]:
                self._places.append(place)
        self._last = place, end
        return place

    def _following(self, place: Place) -> Place:
        last = place.group + 1 == self.n_groups
        first_row = place.first_row + self._count(place.epoch, place.group)
        return Place(first_row, place.epoch + last, 0 if last else place.group + 1)

    def _count(self, epoch: int, group: int) -> int:
        """Number of rows of a group."""
        if self._counted:
            mixed = self.shuffle.shards_mixed
            return int(self._sizes[self._shards(epoch)[group * mixed : (group + 1) * mixed]].sum())
        return len(self._group(epoch, group).offsets) - 1

    def _shards_of(self, epoch: int) -> np.ndarray:
        return self.shuffle.permutation(self.subset.n_shards, epoch, "shards")

    def _make_group(self, epoch: int, number: int) -> Group:
        """A sample's random number does not depend on which other samples are selected."""
        mixed = self.shuffle.shards_mixed
        shards = np.sort(self._shards(epoch)[number * mixed : (number + 1) * mixed]).tolist()
        if not self._counted:
            self.subset.cache.load_indexes(shards)
        samples, places, size = [], [], 0
        for shard in shards:
            selected = self.subset.samples(shard)
            samples.append(selected)
            places.append(size + selected - self.subset.first[shard])
            size += int(self.subset.cache.shard_sizes[shard])
        random = self.shuffle.random(size, epoch, f"samples {number}")
        order = np.concatenate(samples)[np.argsort(random[np.concatenate(places)], kind="stable")]
        if self.pack_tokens is None:
            return Group(order, np.arange(len(order) + 1))
        return self._packed(order, self.pack_tokens, epoch, number)

    def _packed(self, order: np.ndarray, capacity: int, epoch: int, number: int) -> Group:
        lengths = self.subset.lengths(order)
        check_length(lengths, capacity, where=self.subset.cache.url)
        rows: list[np.ndarray] = []
        for start in range(0, len(order), PACKING_WINDOW):
            window = slice(start, start + PACKING_WINDOW)
            packed = pack(lengths[window], capacity)  # sorts by length: the window's rows are shuffled again
            shuffled = self.shuffle.permutation(len(packed), epoch, f"rows {number} {start}")
            rows += [order[window][packed[i]] for i in shuffled]
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return Group(np.concatenate([order[:0], *rows]), offsets)


def check_length(lengths: np.ndarray, capacity: int, where: str) -> None:
    """Raise UserError if a sample is longer than a packed row."""
    longest = int(lengths.max(initial=0))
    if longest > capacity:
        raise UserError(
            f"{where}: a sample has {longest} tokens, more than data.pack_tokens = {capacity}; "
            f"set data.pack_tokens to at least {longest} or data.packing to false"
        )
