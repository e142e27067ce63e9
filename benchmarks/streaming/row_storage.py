"""Base class of streaming readers, and the storage of rows that third-party readers share.

Ids are stored as u16, log-probabilities as f16 and the scalars as f32; uncompressed, or compressed with zstd.
"""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import zstandard

from benchmarks.streaming.delivered_rows import Columns, Reference
from benchmarks.support.layouts import ZSTD_LEVEL

BATCH = 8
STORED: dict[str, type] = {
    "input_ids": np.uint16,
    "ids": np.uint16,
    "logprobs": np.float16,
    "next_logprob": np.float32,
    "log_partition": np.float32,
}
OF_ENTRIES = ("ids", "logprobs", "log_partition")  # columns with several values per row


@dataclass(frozen=True)
class Remote:
    """A reader's folder copied to an object store."""

    url: str  # s3://…
    endpoint: str  # http://…
    copies: Path  # folder for the reader's local copies

    @property
    def http(self) -> str:
        """The same location as an HTTP URL."""
        return f"{self.endpoint}/{self.url.removeprefix('s3://')}"


class Streamer(ABC):
    """One way to store a reference's rows and to read all of them."""

    package: ClassVar[str]
    foreign: ClassVar[bool] = False  # whether the package is none of the project's own dependencies
    shuffle: ClassVar[str]
    shard_bytes: ClassVar[int] = 1 << 26

    def __init__(self, folder: Path, remote: Remote | None = None) -> None:
        """``remote``: read from there instead of from ``folder``."""
        self.folder = folder
        self.remote = remote

    @property
    def version(self) -> str:
        """Version of the package."""
        return version(self.package)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the stored rows; for this project's cache without the code table, a fixed cost."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def store(self, reference: Reference) -> None:
        """Replace the folder's contents with the rows."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.write(reference)

    @abstractmethod
    def write(self, reference: Reference) -> None:
        """Write the rows to the empty folder."""

    def files(self) -> list[str]:
        """Paths or URLs of the written files, sorted."""
        names = [path.name for path in sorted(self.folder.iterdir())]
        return [f"{self.folder if self.remote is None else self.remote.url}/{name}" for name in names]

    def close(self) -> None:  # noqa: B027
        """End threads that do not end by themselves, if any."""

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Columns]:
        """Every sample once, in padded batches, in a different order for each epoch."""


def stored(reference: Reference) -> Iterator[Columns]:
    """Every sample in the stored dtypes."""
    for number in range(len(reference)):
        yield {name: np.asarray(array, STORED[name]) for name, array in reference.sample(number).items()}


def packed(sample: Columns) -> bytes:
    """All columns of a sample in one zstd frame, preceded by the numbers of rows, entries, and log-partitions."""
    sizes = np.array([*sample["ids"].shape, sample["log_partition"].shape[1]], np.int64)
    parts = [sizes.tobytes(), *(sample[name].tobytes() for name in STORED)]
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(parts))


def unpacked(frame: bytes) -> Columns:
    """The inverse of ``packed``."""
    data = zstandard.decompress(frame)
    n, k, t = np.frombuffer(data, np.int64, 3).tolist()
    shapes = {"input_ids": (n,), "ids": (n, k), "logprobs": (n, k), "next_logprob": (n,), "log_partition": (n, t)}
    columns, offset = {}, 24
    for name, shape in shapes.items():
        columns[name] = np.frombuffer(data, STORED[name], math.prod(shape), offset).reshape(shape)
        offset += columns[name].nbytes
    return columns
