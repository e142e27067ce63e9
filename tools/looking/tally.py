"""Streaming means and quantiles from fixed-size histograms."""

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

BINS = 1024
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Group = TypeVar("Group")


class Tally:
    """Histogram of values from 0 to ``high``; larger ones fall in the last bin. Quantiles are at most a bin off."""

    def __init__(self, high: float) -> None:
        self.high = high
        self.counts = np.zeros(BINS, np.int64)
        self.n = 0
        self.sum = 0.0
        self.least, self.most = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Add an array of values, none of them NaN."""
        if not len(values):
            return
        bins = np.clip(values * (BINS / self.high), 0, BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)
        self.n += len(values)
        self.sum += float(values.sum())
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    @property
    def mean(self) -> float:
        """Mean of the added values; 0 if there are none."""
        return self.sum / max(1, self.n)

    def quantile(self, share: float) -> float:
        """Quantile at ``share`` (0 to 1), interpolated within its bin; 0 if nothing was added."""
        if self.n == 0:
            return 0.0
        ends = np.cumsum(self.counts)
        rank = share * self.n
        bin_ = int(np.searchsorted(ends, rank, side="left"))
        inside = (rank - (ends[bin_] - self.counts[bin_])) / max(1, self.counts[bin_])
        return float(np.clip((bin_ + inside) * self.high / BINS, self.least, self.most))

    def summary(self) -> dict[str, float]:
        """Mean and quantiles."""
        return {"mean": self.mean} | {f"p{round(100 * share):02d}": self.quantile(share) for share in QUANTILES}


class Groups(Generic[Group]):
    """Groups by name, created on first use; names beyond the first ``most`` share the group ``rest``."""

    def __init__(self, make: Callable[[], Group], rest: str, most: int = 500) -> None:
        self._make, self._rest, self._most = make, rest, most
        self.by_name: dict[str, Group] = {}

    def __getitem__(self, name: str) -> Group:
        name = name if len(name) <= 200 else name[:199] + "…"
        if name not in self.by_name:
            name = name if len(self.by_name) < self._most else self._rest
            self.by_name.setdefault(name, self._make())
        return self.by_name[name]
