"""This project's cache as one of the streaming readers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.streaming.delivered_rows import Columns, Reference, delivered
from benchmarks.streaming.row_storage import BATCH, Remote, Streamer
from teacher_cache.shards import reader as cache_reader
from trainer.data.batches import SAMPLES_AHEAD

COPIES_BYTES = 1 << 30  # limit of local copies; enough for the whole cache


class Ours(Streamer):
    """``CacheReader.read_batches``. Any order costs the same, so samples come in a full random permutation.

    From a store, it reads local copies of shards, prefetched as the trainer does.
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
        """Bytes of all files but the code table."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def store(self, reference: Reference) -> None:
        """Nothing to do: the reference was read from this cache."""

    def write(self, reference: Reference) -> None:
        """Nothing to do; see ``store``."""

    def epoch(self, number: int) -> Iterator[Columns]:
        """Every sample once, in a random permutation."""
        for batch in self._reader.read_batches(self.batches(self.order(number))):
            yield delivered(batch)

    def batches(self, order: np.ndarray) -> Iterator[list[list[int]]]:
        """Batches with one sample per row."""
        for start in range(0, len(order), BATCH):
            self._reader.fetch_ahead(order[start : start + SAMPLES_AHEAD])
            yield order[start : start + BATCH, None].tolist()

    def order(self, number: int) -> np.ndarray:
        """The order of samples in an epoch."""
        return np.random.default_rng(number).permutation(len(self._reader))

    def close(self) -> None:
        """End the threads that decode and fetch."""
        self._reader.close()


class OursOneThread(Ours):
    """The same, decoding batches one by one in the calling thread."""

    threads = 1

    def epoch(self, number: int) -> Iterator[Columns]:
        """Every sample once, in a random permutation."""
        for rows in self.batches(self.order(number)):
            yield delivered(self._reader.read_rows(rows))


class OursMixed(Ours):
    """The order of ``data.shards_mixed: 2``, so that reading overlaps with fetching later shards."""

    shuffle = "two shards of 64 samples at a time"

    def order(self, number: int) -> np.ndarray:
        """The order of samples in an epoch."""
        rng, sizes = np.random.default_rng(number), self._reader.shard_sizes
        first, shards = np.cumsum(sizes) - sizes, rng.permutation(len(sizes))
        samples = [first[shard] + np.arange(sizes[shard]) for shard in shards]
        groups = [np.concatenate(samples[start : start + 2]) for start in range(0, len(samples), 2)]
        return np.concatenate([rng.permutation(group) for group in groups])
