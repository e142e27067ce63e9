"""This cache as one of the streaming readers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.streaming.delivered_rows import Columns, Reference, delivered
from benchmarks.streaming.row_storage import BATCH, Remote, Streamer
from teacher_cache.shards import reader as cache_reader
from trainer.data.batches import SAMPLES_AHEAD

COPIES_BYTES = 1 << 30  # local copies may take: all of the cache


class Ours(Streamer):
    """``CacheReader.read_batches``: any order costs the same, so the order is a random permutation of all samples.

    From a store it reads local copies of shards, which it fetches ahead as the trainer does.
    """

    package = "offline-distillation"
    shuffle = "true random order"
    threads = cache_reader.DECODE_THREADS

    def __init__(self, folder: Path, remote: Remote | None = None) -> None:
        super().__init__(folder, remote)
        cache_reader.DECODE_THREADS = self.threads
        url, copies = (str(folder), None) if remote is None else (remote.url, (str(remote.copies), COPIES_BYTES))
        self._reader = cache_reader.CacheReader(url, ("tokens", "logits"), copies=copies)

    @property
    def bytes_on_disk(self) -> int:
        """All but the code table."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def store(self, reference: Reference) -> None:
        """Nothing: the reference was read from this cache."""

    def write(self, reference: Reference) -> None:
        """See ``store``."""

    def epoch(self, number: int) -> Iterator[Columns]:
        """A permutation."""
        for batch in self._reader.read_batches(self.batches(self.order(number))):
            yield delivered(batch)

    def batches(self, order: np.ndarray) -> Iterator[list[list[int]]]:
        """A sample in each row."""
        for start in range(0, len(order), BATCH):
            self._reader.fetch_ahead(order[start : start + SAMPLES_AHEAD])
            yield order[start : start + BATCH, None].tolist()

    def order(self, number: int) -> np.ndarray:
        """Of an epoch."""
        return np.random.default_rng(number).permutation(len(self._reader))

    def close(self) -> None:
        """Of decoding and of fetching."""
        self._reader.close()


class OursOneThread(Ours):
    """The same, decoded one batch after the other in the calling thread."""

    threads = 1

    def epoch(self, number: int) -> Iterator[Columns]:
        """A permutation."""
        for rows in self.batches(self.order(number)):
            yield delivered(self._reader.read_rows(rows))


class OursMixed(Ours):
    """In the order of ``data.shards_mixed: 2``, so that samples are read while later shards are still fetched."""

    shuffle = "two shards of 64 samples at a time"

    def order(self, number: int) -> np.ndarray:
        """Of an epoch."""
        rng, sizes = np.random.default_rng(number), self._reader.shard_sizes
        first, shards = np.cumsum(sizes) - sizes, rng.permutation(len(sizes))
        samples = [first[shard] + np.arange(sizes[shard]) for shard in shards]
        groups = [np.concatenate(samples[start : start + 2]) for start in range(0, len(samples), 2)]
        return np.concatenate([rng.permutation(group) for group in groups])
