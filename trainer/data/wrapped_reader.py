"""A cache reader behind another: everything but the rows is the inner one's."""

from collections.abc import Iterable

import numpy as np

from schemas.manifest import Manifest, ShardIndex
from teacher_cache.output_head import OutputHead
from trainer.data.alignment import CheckedReader


class WrappedReader:
    """Implements ``Cache`` but ``signals`` and ``read_rows``."""

    def __init__(self, cache: CheckedReader, manifest: Manifest) -> None:
        """``manifest``: as which the cache is read."""
        self.url = cache.url
        self.manifest = manifest
        self.shard_sizes = cache.shard_sizes
        self._cache = cache

    @property
    def keeps_copies(self) -> bool:
        """Whether shards are copied to a local folder."""
        return self._cache.keeps_copies

    def fetch_ahead(self, positions: np.ndarray) -> None:
        """Prefetch the shards of these samples."""
        self._cache.fetch_ahead(positions)

    def load_indexes(self, shards: Iterable[int]) -> None:
        """Load the indexes of these shards concurrently."""
        self._cache.load_indexes(shards)

    def index(self, shard: int) -> ShardIndex:
        """Index of a shard."""
        return self._cache.index(shard)

    def read_head(self) -> OutputHead:
        """The teacher's output head."""
        return self._cache.read_head()

    def close(self) -> None:
        """Release files."""
        self._cache.close()
