"""What the trainer asks of caches: the reading half of ``teacher_cache`` (``CacheReader``) offers it."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from schemas.manifest import Manifest, ShardIndex, Signal
from teacher_cache.output_head import OutputHead
from teacher_cache.records import RowBatch


class Readable(Protocol):
    """What batches are read from: a cache, or several as one."""

    manifest: Manifest
    signals: tuple[Signal, ...]

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """Decode the samples of each row, one after the other, into padded arrays."""

    def fetch_ahead(self, positions: np.ndarray) -> None:
        """These samples will be read next."""

    def read_head(self) -> OutputHead:
        """The teacher's output head, of a cache with final hidden states."""

    def close(self) -> None:
        """Release files."""


class Cache(Readable, Protocol):
    """One cache."""

    url: str
    shard_sizes: np.ndarray

    @property
    def keeps_copies(self) -> bool:
        """Whether shards are fetched to a local folder."""

    def index(self, shard: int) -> ShardIndex:
        """Keys, lengths and layers of a shard's samples."""

    def load_indexes(self, shards: Iterable[int]) -> None:
        """The indexes of these shards will be asked for next."""
