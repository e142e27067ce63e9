"""Padded batches as a training loop receives them, and a check that they hold the right rows."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import CacheReader

Columns = Mapping[str, np.ndarray]  # of a sample [S, …], or of a padded batch [R, L, …]
DELIVERED: dict[str, tuple[type, float]] = {  # dtype in a batch, and padding value
    "input_ids": (np.int64, 0),
    "ids": (np.int32, 0),
    "logprobs": (np.float32, -np.inf),
    "next_logprob": (np.float32, np.nan),
    "log_partition": (np.float32, 0),
}
PADDED = ("input_ids", "ids", "logprobs", "log_partition")  # columns whose padding is not NaN


class WrongRowsError(Exception):
    """A batch differs from what was written."""


@dataclass(frozen=True)
class Reference:
    """The rows that every reader must deliver: all samples of the cache, concatenated."""

    columns: Columns
    first: np.ndarray  # int64 [N + 1]; start of each sample

    @staticmethod
    def load(folder: Path) -> "Reference":
        """Open the arrays in ``folder``, memory-mapped."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in DELIVERED}
        return Reference(arrays, np.load(folder / "first.npy"))

    @staticmethod
    def save(folder: Path, reader: CacheReader) -> None:
        """Write the rows of a whole cache."""
        folder.mkdir(parents=True, exist_ok=True)
        samples = [delivered(reader.read_rows([[number]])) for number in range(len(reader))]
        for name in DELIVERED:
            np.save(folder / f"{name}.npy", np.concatenate([sample[name][0] for sample in samples]))
        np.save(folder / "first.npy", np.cumsum([0, *reader.num_tokens.tolist()]))

    def __len__(self) -> int:
        return len(self.first) - 1

    def sample(self, number: int) -> Columns:
        """One sample's columns."""
        rows = slice(*self.first[number : number + 2])
        return {name: array[rows] for name, array in self.columns.items()}

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """Digest of input ids → number of the sample."""
        return {digest(self.sample(number)["input_ids"]): number for number in range(len(self))}

    def check(self, batches: Iterable[Columns]) -> float:
        """Check an epoch's batches; returns the largest error of a log-probability, in nats.

        Raises WrongRowsError unless every sample occurs once and all other values are equal.
        """
        seen: list[int] = []
        worst = 0.0
        for batch in batches:
            for r, n in enumerate((batch["next_logprob"] == batch["next_logprob"]).sum(axis=1) + 1):  # NaN at the end
                number, error = self._check_sample({name: batch[name][r, :n] for name in DELIVERED})
                if any(not np.array_equal(batch[name][r, n:], padding(batch[name][r, n:], name)) for name in PADDED):
                    raise WrongRowsError(f"sample {number}: the padding is not empty")
                seen.append(number)
                worst = max(worst, error)
        if sorted(seen) != list(range(len(self))):
            raise WrongRowsError(
                f"{len(seen)} samples, {len(set(seen))} of them distinct, wanted each of {len(self)} once"
            )
        return worst

    def _check_sample(self, found: Columns) -> tuple[int, float]:
        """Number of the sample and its largest log-probability error."""
        number = self.numbers.get(digest(found["input_ids"]))
        if number is None:
            raise WrongRowsError("a sample was never written")
        true = self.sample(number)
        for name in ("ids", "next_logprob", "log_partition"):
            if not np.array_equal(found[name], true[name], equal_nan=name == "next_logprob"):
                raise WrongRowsError(f"sample {number}: {name} differ from what was written")
        return number, float(np.abs(found["logprobs"] - true["logprobs"]).max())


def padding(like: np.ndarray, name: str) -> np.ndarray:
    """The padding of a column, in the shape of ``like``."""
    return np.full_like(like, DELIVERED[name][1])


def digest(input_ids: np.ndarray) -> bytes:
    """sha256 of a sample's input ids, to identify it."""
    return hashlib.sha256(input_ids.astype("<i8").tobytes()).digest()


def delivered(batch: RowBatch) -> Columns:
    """The compared columns of one of this cache's batches."""
    return {name: getattr(batch, name) for name in DELIVERED}


def collate(samples: Sequence[Columns]) -> Columns:
    """Pad samples into a batch, with the dtypes and shapes of the cache's reader."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    batch = {}
    for name, (dtype, empty) in DELIVERED.items():
        batch[name] = np.empty((len(samples), longest, *samples[0][name].shape[1:]), dtype)
        for row, sample in zip(batch[name], samples, strict=True):
            n = len(sample[name])
            row[:n] = sample[name]
            row[n:] = empty
    return batch
