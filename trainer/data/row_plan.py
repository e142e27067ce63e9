"""The rows that a run reads: those of one cache in its order, or of several interleaved by weight.

Every cache keeps its own order and epochs; an epoch holds each of its samples once. The cache that a row is taken from
is a function of the row number alone, so a mixture resumes like a single cache.
"""

import math
from collections.abc import Sequence

import numpy as np

from trainer.data.order import CacheOrder, Place

STRETCH = 4096
MAX_WEIGHT = 1 << 30  # sum of integer weights: products with row numbers stay within 64 bits


class RowPlan:
    """``total`` rows. Samples are numbered consecutively, cache after cache."""

    def __init__(self, orders: Sequence[CacheOrder], total: int, weights: Sequence[int] = (1,)) -> None:
        """``weights``: share of the rows of each cache, above 0."""
        self.orders = orders
        self.total = total
        self.weights = weights
        sizes = [int(order.subset.cache.shard_sizes.sum()) for order in orders]
        self._first = np.cumsum([0, *sizes])  # number of each cache's first sample

    def __len__(self) -> int:
        return self.total

    def taken(self, rows: np.ndarray) -> np.ndarray:
        """How many of the first ``rows`` [n] rows are from each cache, int64 [caches, n].

        The first cache gets its share, rounded; the others divide the rest in the same way. Counts are monotonic, sum
        to ``rows``, and are within 1 of their share for two caches, within a few for more.
        """
        left, weight, found = np.asarray(rows, np.int64), sum(self.weights), []
        for own in self.weights[:-1]:
            found.append((2 * own * left + weight) // (2 * weight))
            left, weight = left - found[-1], weight - own
        return np.stack([*found, left])

    def rows(self, numbers: Sequence[int]) -> list[list[int]]:
        """The samples of these consecutive rows."""
        start, stop = numbers[0], numbers[-1] + 1
        if len(self.orders) == 1:
            return self.orders[0].rows(start, stop)
        taken = self.taken(np.arange(start, stop + 1))
        found: list[list[int]] = [[]] * (stop - start)
        for cache, order in enumerate(self.orders):
            first = int(self._first[cache])
            own = np.flatnonzero(np.diff(taken[cache])).tolist()
            rows = order.rows(int(taken[cache, 0]), int(taken[cache, -1]))
            for place, row in zip(own, rows, strict=True):
                found[place] = [first + sample for sample in row]
        return found

    def ahead(self, row: int, count: int) -> np.ndarray:
        """About ``count`` samples that are read next, from this row on; int64."""
        shares = [-(-count * weight // sum(self.weights)) for weight in self.weights]
        parts = [
            first + order.ahead(taken, share)
            for (order, taken), share, first in zip(self._taken_by_order(row), shares, self._first, strict=False)
        ]
        return np.concatenate(parts)

    def epoch(self, rows: int) -> float:
        """Epochs completed by the first ``rows`` rows: passes over the samples of all caches."""
        sizes = np.diff(self._first)
        epochs = [order.epoch(taken) for order, taken in self._taken_by_order(rows)]
        return float((sizes * epochs).sum() / sizes.sum())

    def places(self, rows: int) -> list[Place]:
        """For each cache, the place of the group that is current after ``rows`` rows."""
        return [order.place(taken) for order, taken in self._taken_by_order(rows)]

    def _taken_by_order(self, rows: int) -> list[tuple[CacheOrder, int]]:
        return list(zip(self.orders, self.taken(np.array([rows]))[:, 0].tolist(), strict=True))


class SortedRows:
    """One sample per row for evaluation: in the cache's order, sorted by length within stretches to reduce padding."""

    def __init__(self, samples: np.ndarray, lengths: np.ndarray, stretch: int = STRETCH) -> None:
        """``lengths`` in tokens; ``stretch``: samples sorted together."""
        self.longest = int(lengths.max(initial=0))
        starts = range(0, len(samples), stretch)
        orders = [start + np.argsort(lengths[start : start + stretch], kind="stable") for start in starts]
        self.samples = samples[np.concatenate([np.empty(0, np.int64), *orders])]
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, numbers: Sequence[int]) -> list[list[int]]:
        """The sample of each of these rows."""
        return [[sample] for sample in self.samples[list(numbers)].tolist()]

    def ahead(self, row: int, count: int) -> np.ndarray:
        """The next ``count`` samples from a row on."""
        return self.samples[row : row + count]


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as integers in the same proportions; exact for integers of a small sum. Every weight must be above 0."""
    scale = 1.0 if all(float(weight).is_integer() for weight in weights) else MAX_WEIGHT / sum(weights)
    scale = min(scale, MAX_WEIGHT / sum(weights))
    return [max(1, round(weight * scale)) for weight in weights]


def plan_rows(
    orders: Sequence[CacheOrder],
    weights: Sequence[float] | None,
    *,
    global_batch: int,
    epochs: float,
    max_steps: int | None,
) -> RowPlan:
    """Plan ``max_steps`` steps of ``global_batch`` rows, or as many as ``epochs`` passes over all samples take.

    The last batch is filled up from the next epoch. Without ``weights``, caches are weighted by their rows, so that
    their epochs end together. Counting those may take computing all groups (packing, filters, splits).
    """
    if weights is None and len(orders) > 1:
        weights = [order.rows_in_epoch(0) for order in orders]
    if max_steps is None:
        max_steps = math.ceil(sum(_rows_in(order, epochs) for order in orders) / global_batch)
    return RowPlan(orders, max_steps * global_batch, integer_weights(weights) if weights else [1])


def _rows_in(order: CacheOrder, epochs: float) -> float:
    whole = int(epochs)
    rows: float = sum(order.rows_in_epoch(epoch) for epoch in range(whole))
    return rows + (epochs - whole) * order.rows_in_epoch(whole) if epochs > whole else rows
