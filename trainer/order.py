"""The order of training: one finite sequence of rows, planned ahead and a pure function of the cache, seed and epoch.

Nothing of ranks or worker processes is in it. It is shuffled without a buffer: shards in random order, the samples of a
few shards at a time mixed, so that a reader has only those open.

A row is one sample, or several packed one after the other. Epochs follow one another without a seam, so the state
needed to resume is one integer, the rows consumed, and nothing before it is read again. The price is memory: 8 bytes a
sample and epoch, 24 MB for a million samples and three epochs.
"""

import math
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import xxhash

from schemas.errors import UserError

PACKING_WINDOW = 4096
"""Samples packed together: wide enough to fill rows well, narrow enough to leave the order random."""


@dataclass(frozen=True)
class Shuffle:
    """What the order of an epoch follows from. Caches of one corpus are read in one order, whatever they store."""

    seed: int
    shards_mixed: int  # shards whose samples are mixed at a time

    def random(self, count: int, epoch: int, what: str) -> np.ndarray:
        """``count`` random numbers, uint64: a pure function of all this.

        Raw Philox output, which numpy keeps the same across versions; what its ``Generator`` does with it may change
        (NEP 19).
        """
        key = xxhash.xxh3_128_intdigest(f"{self.seed} {epoch} {what}".encode())
        return np.random.Philox(key=[key >> 64, key & (1 << 64) - 1]).random_raw(count)

    def permutation(self, count: int, epoch: int, what: str) -> np.ndarray:
        """A permutation of range(count), int64."""
        return np.argsort(self.random(count, epoch, what), kind="stable")

    def samples(self, samples: np.ndarray, shard_sizes: np.ndarray, epoch: int) -> np.ndarray:
        """``samples`` (numbers in the cache) in the order of an epoch; ``shard_sizes``: samples of each shard."""
        place = np.empty(len(shard_sizes), np.int64)
        place[self.permutation(len(shard_sizes), epoch, "shards")] = np.arange(len(shard_sizes))
        shards = np.searchsorted(np.cumsum(shard_sizes), samples, side="right")
        mixed_with = place[shards] // self.shards_mixed
        return samples[np.lexsort((self.random(len(samples), epoch, "samples"), mixed_with))]


@dataclass(frozen=True)
class RowPlan:
    """The rows of a whole training run, in order: row r holds samples ``samples[offsets[r]:offsets[r + 1]]``."""

    samples: np.ndarray  # int64 [total samples]
    offsets: np.ndarray  # int64 [rows + 1]
    samples_per_epoch: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        """Sample indices of one row, int64."""
        return self.samples[self.offsets[index] : self.offsets[index + 1]]

    def epoch(self, rows: int) -> float:
        """Passes over the samples that the first ``rows`` rows make up."""
        return float(self.offsets[rows] / self.samples_per_epoch)

    def num_tokens(self, lengths: np.ndarray, start: int, stop: int) -> int:
        """Tokens in rows [start, stop), given every sample's length."""
        return int(lengths[self.samples[self.offsets[start] : self.offsets[stop]]].sum())


def split_by_key(keys: list[str], validation_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64) of the training and validation samples.

    A key decides for itself by its hash: a sample stays on its side when the cache grows or is merged.
    """
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), dtype=np.uint64, count=len(keys))
    held_out = hashes / 2.0**64 < validation_fraction
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Groups of indices into ``lengths`` whose sums are ≤ ``capacity``: best fit, longest first.

    Longest first leaves the short samples to fill the gaps: a few percent of padding, where filling rows in order of
    arrival leaves a quarter or more. Every length must be ≤ capacity.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        slot = bisect_left(room, (length, -1))
        if slot < len(room):
            free, row = room.pop(slot)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(room, (free - length, row))
    return rows


def epoch_rows(
    samples: np.ndarray,
    lengths: np.ndarray,
    shard_sizes: np.ndarray,
    shuffle: Shuffle,
    epoch: int,
    pack_tokens: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch: every sample once, row after row, and the number of samples in each row; both int64.

    ``lengths`` holds the tokens of every sample of the cache; ``pack_tokens`` None means one sample a row.
    """
    order = shuffle.samples(samples, shard_sizes, epoch)
    if pack_tokens is None:
        return order, np.ones(len(order), dtype=np.int64)
    rows: list[np.ndarray] = []
    for start in range(0, len(order), PACKING_WINDOW):
        window = order[start : start + PACKING_WINDOW]
        packed = pack(lengths[window], pack_tokens)  # sorts by length: the window's rows are shuffled again
        rows += [window[packed[i]] for i in shuffle.permutation(len(packed), epoch, f"rows {start}")]
    return np.concatenate(rows), np.array([len(row) for row in rows])


def plan_rows(
    samples: np.ndarray,
    lengths: np.ndarray,
    shard_sizes: np.ndarray,
    shuffle: Shuffle,
    *,
    global_batch: int,
    epochs: float,
    max_steps: int | None,
    pack_tokens: int | None,
) -> RowPlan:
    """Plan ``max_steps`` steps of ``global_batch`` rows, or as many as ``epochs`` passes over ``samples`` need.

    The last batch is filled up from the next epoch. ``samples`` must not be empty.
    """
    parts: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    planned, epoch = 0, 0
    while max_steps is None or planned < max_steps * global_batch:
        part, part_counts = epoch_rows(samples, lengths, shard_sizes, shuffle, epoch, pack_tokens)
        if max_steps is None and epoch + 1 >= epochs:
            max_steps = math.ceil((planned + (epochs - epoch) * len(part_counts)) / global_batch)
        parts.append(part)
        counts.append(part_counts)
        planned += len(part_counts)
        epoch += 1
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])[: max_steps * global_batch + 1]
    return RowPlan(np.concatenate(parts)[: offsets[-1]], offsets, len(samples))


def sorted_rows(samples: np.ndarray, lengths: np.ndarray) -> RowPlan:
    """One row per sample, shortest first, so that batches hold little padding: for evaluation."""
    order = samples[np.argsort(lengths[samples], kind="stable")]
    return RowPlan(order, np.arange(len(order) + 1), len(order))


def check_lengths(lengths: np.ndarray, samples: np.ndarray, pack_tokens: int, where: str) -> None:
    """Raise UserError if one of ``samples`` does not fit in a packed row."""
    longest = int(lengths[samples].max())
    if longest > pack_tokens:
        raise UserError(
            f"{where}: its longest sample has {longest} tokens, more than data.pack_tokens = {pack_tokens}; "
            f"set data.pack_tokens to at least {longest} or data.packing to false"
        )
