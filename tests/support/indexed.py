"""A cache that has indexes and nothing else: what the order of training follows from."""

from collections.abc import Iterable, Sequence

import numpy as np

from schemas.manifest import ShardIndex


class Indexed:
    """Shards of ``sizes`` samples; sample i has ``lengths[i]`` tokens, is of ``layers[i]``, and its key is i in hex."""

    def __init__(
        self,
        sizes: Sequence[int],
        lengths: Sequence[int] | np.ndarray | None = None,
        layers: Sequence[str] | None = None,
        url: str = "cache",
    ) -> None:
        self.url = url
        self.shard_sizes = np.array(sizes, np.int64)
        self.lengths = np.full(self.shard_sizes.sum(), 10) if lengths is None else np.asarray(lengths)
        self.layers = layers
        self.first = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        self.reads: list[int] = []

    def load_indexes(self, shards: Iterable[int]) -> None:
        pass

    def index(self, shard: int) -> ShardIndex:
        self.reads.append(shard)
        samples = range(self.first[shard], self.first[shard + 1])
        return ShardIndex.model_construct(
            keys=[f"{sample:08x}" for sample in samples],
            num_tokens=[int(self.lengths[sample]) for sample in samples],
            layers=None if self.layers is None else [self.layers[sample] for sample in samples],
        )
