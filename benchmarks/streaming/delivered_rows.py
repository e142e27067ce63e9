"""What a training loop is given of a cache, padded batches of arrays, and whether they hold the rows they should."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import CacheReader

Columns = Mapping[str, np.ndarray]  # of a sample [S, …], or of a padded batch [R, L, …]
DELIVERED: dict[str, tuple[type, float]] = {  # dtype in a batch, and what its padding holds
    "input_ids": (np.int64, 0),
    "ids": (np.int32, 0),
    "logprobs": (np.float32, -np.inf),
    "next_logprob": (np.float32, np.nan),
    "log_partition": (np.float32, 0),
}
PADDED = ("input_ids", "ids", "logprobs", "log_partition")  # columns whose padding is not NaN


class WrongRowsError(Exception):
    """A batch does not hold what was written."""


@dataclass(frozen=True)
class Reference:
    """The rows that everybody has to deliver, one sample after the other, as the cache gives them."""

    columns: Columns
    first: np.ndarray  # int64 [N + 1]; where each sample starts

    @staticmethod
    def load(folder: Path) -> "Reference":
        """Memory-mapped."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in DELIVERED}
        return Reference(arrays, np.load(folder / "first.npy"))

    @staticmethod
    def save(folder: Path, reader: CacheReader) -> None:
        """Write the rows of a whole cache."""
        folder.mkdir(parents=True, exist_ok=True)
        samples = [delivered(reader.read_rows([[position]])) for position in range(len(reader))]
        for name in DELIVERED:
            np.save(folder / f"{name}.npy", np.concatenate([sample[name][0] for sample in samples]))
        np.save(folder / "first.npy", np.cumsum([0, *reader.num_tokens.tolist()]))

    def __len__(self) -> int:
        return len(self.first) - 1

    def sample(self, position: int) -> Columns:
        """One sample's columns."""
        rows = slice(*self.first[position : position + 2])
        return {name: array[rows] for name, array in self.columns.items()}

    @cached_property
    def positions(self) -> dict[bytes, int]:
        """Where each sample is, by its input ids."""
        return {digest(self.sample(position)["input_ids"]): position for position in range(len(self))}

    def check(self, batches: Iterable[Columns]) -> float:
        """The largest error of a log-probability; all else must be equal, and each sample there once."""
        seen: list[int] = []
        worst = 0.0
        for batch in batches:
            for r, n in enumerate((batch["next_logprob"] == batch["next_logprob"]).sum(axis=1) + 1):  # NaN at the end
                position, error = self._check_sample({name: batch[name][r, :n] for name in DELIVERED})
                if any(not np.array_equal(batch[name][r, n:], padding(batch[name][r, n:], name)) for name in PADDED):
                    raise WrongRowsError(f"sample {position}: the padding is not empty")
                seen.append(position)
                worst = max(worst, error)
        if sorted(seen) != list(range(len(self))):
            raise WrongRowsError(f"{len(seen)} samples came, {len(set(seen))} different ones of {len(self)}")
        return worst

    def _check_sample(self, found: Columns) -> tuple[int, float]:
        position = self.positions.get(digest(found["input_ids"]))
        if position is None:
            raise WrongRowsError("a sample came that nobody wrote")
        true = self.sample(position)
        for name in ("ids", "next_logprob", "log_partition"):
            if not np.array_equal(found[name], true[name], equal_nan=name == "next_logprob"):
                raise WrongRowsError(f"sample {position}: other {name} than were written")
        return position, float(np.abs(found["logprobs"] - true["logprobs"]).max())


def padding(like: np.ndarray, name: str) -> np.ndarray:
    """What the padding of a column holds."""
    return np.full_like(like, DELIVERED[name][1])


def digest(input_ids: np.ndarray) -> bytes:
    """Names a sample."""
    return hashlib.sha256(input_ids.astype("<i8").tobytes()).digest()


def delivered(batch: RowBatch) -> Columns:
    """What is compared of this cache's batches."""
    return {name: getattr(batch, name) for name in DELIVERED}


def collate(samples: Sequence[Columns]) -> Columns:
    """A padded batch of samples, in the same arrays as the cache's reader gives."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    batch = {}
    for name, (dtype, empty) in DELIVERED.items():
        batch[name] = np.empty((len(samples), longest, *samples[0][name].shape[1:]), dtype)
        for row, sample in zip(batch[name], samples, strict=True):
            n = len(sample[name])
            row[:n] = sample[name]
            row[n:] = empty
    return batch
