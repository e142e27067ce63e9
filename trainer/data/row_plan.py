"""Which rows a run reads: those of one cache in its order, or those of several in turn, by weight.

Every cache keeps its own order and its own epochs, each of which holds every sample once. Which cache a row is taken
from follows from its number alone, so the mixture is as elastic as the order of one cache.
"""

import math
from collections.abc import Sequence

import numpy as np

from trainer.data.order import CacheOrder, Place

STRETCH = 4096
MAX_WEIGHT = 1 << 30  # of all caches together, as integers: products with row numbers stay within 64 bits


class RowPlan:
    """``total`` rows. Samples are numbered through all caches, one cache after the other."""

    def __init__(self, orders: Sequence[CacheOrder], total: int, weights: Sequence[int] = (1,)) -> None:
        """``weights``: of each cache, above 0; shares of the rows."""
        self.orders = orders
        self.total = total
        self.weights = weights
        sizes = [int(order.subset.cache.shard_sizes.sum()) for order in orders]
        self._first = np.cumsum([0, *sizes])  # sample of each cache

    def __len__(self) -> int:
        return self.total

    def taken(self, rows: np.ndarray) -> np.ndarray:
        """How many of the first ``rows`` [n] rows are of each cache, int64 [caches, n].

        The first cache has its share, rounded; the others share the rest in the same way. So counts never fall, always
        sum to ``rows``, and each is within 1 of its share with two caches, within a few with more.
        """
        left, weight, found = np.asarray(rows, np.int64), sum(self.weights), []
        for own in self.weights[:-1]:
            found.append((2 * own * left + weight) // (2 * weight))
            left, weight = left - found[-1], weight - own
        return np.stack([*found, left])

    def rows(self, numbers: Sequence[int]) -> list[list[int]]:
        """The samples of these rows, whose numbers rise one by one."""
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
        """About ``count`` samples that are read from this row on, int64."""
        shares = [-(-count * weight // sum(self.weights)) for weight in self.weights]
        parts = [
            first + order.ahead(taken, share)
            for (order, taken), share, first in zip(self._taken_by_order(row), shares, self._first, strict=False)
        ]
        return np.concatenate(parts)

    def epoch(self, rows: int) -> float:
        """Passes over the samples of all caches that the first ``rows`` rows make up."""
        sizes = np.diff(self._first)
        epochs = [order.epoch(taken) for order, taken in self._taken_by_order(rows)]
        return float((sizes * epochs).sum() / sizes.sum())

    def places(self, rows: int) -> list[Place]:
        """For each cache, a place close to where it stands after ``rows`` rows."""
        return [order.place(taken) for order, taken in self._taken_by_order(rows)]

    def _taken_by_order(self, rows: int) -> list[tuple[CacheOrder, int]]:
        return list(zip(self.orders, self.taken(np.array([rows]))[:, 0].tolist(), strict=True))


class SortedRows:
    """One sample a row, in the cache's order but for short stretches that are sorted, so that batches hold little
    padding: for evaluation."""

    def __init__(self, samples: np.ndarray, lengths: np.ndarray, stretch: int = STRETCH) -> None:
        """``samples`` and their ``lengths`` in tokens; ``stretch``: samples that are sorted together."""
        self.longest = int(lengths.max(initial=0))
        starts = range(0, len(samples), stretch)
        orders = [start + np.argsort(lengths[start : start + stretch], kind="stable") for start in starts]
        self.samples = samples[np.concatenate([np.empty(0, np.int64), *orders])]

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, numbers: Sequence[int]) -> list[list[int]]:
        """The sample of each of these rows."""
        return [[sample] for sample in self.samples[list(numbers)].tolist()]

    def ahead(self, row: int, count: int) -> np.ndarray:
        """The next samples from a row on."""
        return self.samples[row : row + count]


def integer_weights(weights: Sequence[float]) -> list[int]:
    """The same shares, as integers; exact for integers of a small sum. Every weight must be above 0."""
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
    """Plan ``max_steps`` steps of ``global_batch`` rows, or as many as ``epochs`` passes over all samples need.

    The last batch is filled up from the next epoch. Without ``weights`` a cache has as many rows as it takes to pass
    over it once while the others are passed over once. To know how many these are, everything may have to be looked at:
    packing, filters and splits are not known before.
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
