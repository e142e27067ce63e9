"""Interface through which the trainer reads caches; ``teacher_cache``'s ``CacheReader`` implements it."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from schemas.manifest import Manifest, ShardIndex, Signal
from teacher_cache.output_head import OutputHead
from teacher_cache.records import RowBatch


class Readable(Protocol):
    """One cache, or several as one."""

    manifest: Manifest
    signals: tuple[Signal, ...]

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """Decode the samples of each row, concatenated, into padded arrays."""

    def fetch_ahead(self, positions: np.ndarray) -> None:
        """Prefetch the shards of these samples."""

    def read_head(self) -> OutputHead:
        """The teacher's output head; only for a cache with final hidden states."""

    def close(self) -> None:
        """Release files."""


class Cache(Readable, Protocol):
    """One cache."""

    url: str
    shard_sizes: np.ndarray

    @property
    def keeps_copies(self) -> bool:
        """Whether shards are copied to a local folder."""

    def index(self, shard: int) -> ShardIndex:
        """Keys, lengths and mix layers of a shard's samples."""

    def load_indexes(self, shards: Iterable[int]) -> None:
        """Load the indexes of these shards concurrently."""
