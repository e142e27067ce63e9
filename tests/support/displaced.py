"""Rows that stand where they do not belong: every checksum of a cache made of them is right."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from support.synthetic import Pair
from teacher_cache.records import LogitsSample

Shards = Sequence[Sequence[Pair]]


def shifted(shards: Shards, by: int = 1) -> list[list[Pair]]:
    """Each row is that of the one ``by`` rows before; the first are the last's."""

    def shift(logits: LogitsSample) -> LogitsSample:
        changed = {
            name: np.roll(values, by, axis=0)
            for name, values in vars(logits).items()
            if name not in ("num_tokens", "positions")
        }
        return replace(logits, **changed)

    return [[(tokens, shift(logits)) for tokens, logits in shard] for shard in shards]


def swapped(shards: Shards) -> list[list[Pair]]:
    """Neighbours have each other's rows; they are of one length."""
    return [
        [(tokens, shard[number ^ 1][1]) for number, (tokens, _) in enumerate(shard[: len(shard) // 2 * 2])]
        for shard in shards
    ]


def truncated(shards: Shards, by: int = 2) -> list[list[Pair]]:
    """The last ``by`` rows of each sample are missing."""

    def cut(logits: LogitsSample) -> LogitsSample:
        return replace(logits, **{name: v[:-by] for name, v in vars(logits).items() if name != "num_tokens"})

    return [[(tokens, cut(logits)) for tokens, logits in shard] for shard in shards]


DISPLACED: dict[str, Callable[[Shards], list[list[Pair]]]] = {
    "shifted by one: each is the teacher's of one token before": shifted,
    "shifted by one: each is the teacher's of one token later": lambda shards: shifted(shards, -1),
    "swapped between samples": swapped,
    "truncated": truncated,
}
