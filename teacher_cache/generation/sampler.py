"""The interface of a sampler: a loaded generator that writes replies."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import xxhash

from schemas.generate_config import SamplingConfig

SEED_BITS = 63  # vLLM takes signed 64-bit seeds


class Asked(NamedTuple):
    """One reply to write."""

    prompt_ids: np.ndarray  # uint32 [P]
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]  # tokens that end the reply
    seed: int


class Written(NamedTuple):
    """One reply: its ids, with the token that ended it, and ``stop`` or ``length``."""

    ids: np.ndarray  # uint32 [N]
    finish: str


class Sampler(ABC):
    """A loaded generator. Use as a context manager."""

    @abstractmethod
    def write(self, asked: Sequence[Asked], on_written: Callable[[int], None]) -> list[Written]:
        """Write one reply each, in order; ``on_written`` hears how many more are done.

        Deterministic: the same ``asked`` in the same order give the same ids, whatever was written before.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the model's memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seed_of(prompt_key: str, sample: int, seed: int) -> int:
    """Seed of a reply's random numbers: xxh3 of the prompt's key, the number of the reply and the configured seed."""
    return xxhash.xxh3_64_intdigest(f"{prompt_key} {sample} {seed}".encode()) >> (64 - SEED_BITS)
