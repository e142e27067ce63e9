"""Streaming readers of top-k rows, each with the storage and the loader that its documentation shows.

All but this project's own store ids as u16, log-probabilities as f16 and the scalars as f32: either as they are, or
compressed with zstd (level 3, their own way where they have one). Every loader runs in the process that asks for the
batches, without workers, and every batch is padded by the same function. Packages are imported where they are used,
because some of them are only there in an environment of their own.
"""

import importlib
import itertools
import math
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import zstandard

from benchmarks.layouts import ZSTD_LEVEL
from benchmarks.streaming_rows import Columns, Reference, collate, own_columns
from teacher_cache.shards import reader as cache_reader

BATCH = 8
BUFFER = 100  # samples, of those that shuffle in a buffer
SHARD_BYTES = 1 << 26
STORED: dict[str, type] = {
    "input_ids": np.uint16,
    "ids": np.uint16,
    "logprobs": np.float16,
    "next_logprob": np.float32,
    "log_partition": np.float32,
}
OF_ENTRIES = ("ids", "logprobs", "log_partition")  # columns with several values a row


class Streamer(ABC):
    """The rows of a reference in one storage, and one way to read all of them."""

    package: ClassVar[str]
    foreign: ClassVar[bool] = False  # is the package one that the project does without?
    shuffle: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def version(self) -> str:
        """Of the package."""
        return version(self.package)

    @property
    def bytes_on_disk(self) -> int:
        """Of what was written; of this project's cache all but the code table, which does not grow with it."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def store(self, reference: Reference) -> None:
        """Write the rows anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.write(reference)

    @abstractmethod
    def write(self, reference: Reference) -> None:
        """Write the rows to the folder, which is empty."""

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Columns]:
        """Every sample once, in padded batches, in an order that is another for each epoch."""


class Ours(Streamer):
    """``CacheReader.read_rows``: any order costs the same, so the order is a random permutation of all samples."""

    package = "offline-distillation"
    shuffle = "true random order"
    threads = cache_reader.DECODE_THREADS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cache_reader.DECODE_THREADS = self.threads
        self._reader = cache_reader.CacheReader(str(folder), ("tokens", "logits"))

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
        order = np.random.default_rng(number).permutation(len(self._reader)).tolist()
        for start in range(0, len(order), BATCH):
            yield own_columns(self._reader, order[start : start + BATCH])


class OursOneThread(Ours):
    """The same, decoding in the calling thread only."""

    threads = 1


class WebDatasetNpy(Streamer):
    """A tar member a column, as ``.npy``; shards in random order, samples by a buffer."""

    package = "webdataset"
    shuffle = f"shards, then a buffer of {BUFFER}"

    def write(self, reference: Reference) -> None:
        """With its own writer."""
        import webdataset

        with webdataset.ShardWriter(f"{self.folder}/%06d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
            for position, sample in enumerate(stored(reference)):
                writer.write({"__key__": f"{position:08d}", **self.members(sample)})

    def epoch(self, number: int) -> Iterator[Columns]:
        """Shuffled while still bytes, which is cheaper to hold."""
        import webdataset

        paths = [str(path) for path in sorted(self.folder.iterdir())]
        files = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=number, empty_check=False)
        shuffled = files.shuffle(BUFFER, seed=number)
        yield from self.decoded(shuffled).batched(BATCH, collation_fn=collate, partial=True)

    def members(self, sample: Columns) -> dict[str, Any]:
        """What is written of a sample."""
        return {f"{name}.npy": array for name, array in sample.items()}

    def decoded(self, samples: Any) -> Any:
        """The pipeline that makes columns of members."""
        return samples.decode().map(lambda sample: {name: sample[f"{name}.npy"] for name in STORED})


class WebDatasetZstd(WebDatasetNpy):
    """All columns of a sample in one zstd frame."""

    def members(self, sample: Columns) -> dict[str, Any]:
        """One."""
        return {"rows.zst": packed(sample)}

    def decoded(self, samples: Any) -> Any:
        """A user's own decoder."""
        return samples.map(lambda sample: unpacked(sample["rows.zst"]))


class LitData(Streamer):
    """Chunks of numpy columns; chunks in random order, and samples inside of them.

    Samples are decoded one by one: the default (256 at a time) decodes a chunk's many times over and is slower.
    """

    package = "litdata"
    foreign = True
    shuffle = "chunks, then blocks within one"
    compression: ClassVar[str | None] = None

    def write(self, reference: Reference) -> None:
        """With the writer that its ``optimize`` runs in workers."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.folder), chunk_bytes=SHARD_BYTES, compression=self.compression)
        for position, sample in enumerate(stored(reference)):
            writer[position] = dict(sample)
        writer.done()
        writer.merge()

    @cached_property
    def loader(self) -> Any:
        """Its own."""
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(self.folder), shuffle=True, drop_last=False, batch_decode=0)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)

    def epoch(self, number: int) -> Iterator[Columns]:
        """The next one: the loader counts them."""
        yield from self.loader


class LitDataZstd(LitData):
    """Compressed its own way."""

    compression = f"zstd:{ZSTD_LEVEL}"


class Mosaic(Streamer):
    """MDS shards of arrays; its ``py1e`` order. Shards compressed its own way are unzipped for good at first use."""

    package = "mosaicml-streaming"
    foreign = True
    shuffle = "shards, then blocks (py1e)"
    columns: ClassVar[dict[str, str]] = {name: f"ndarray:{np.dtype(kind).name}" for name, kind in STORED.items()}

    def write(self, reference: Reference) -> None:
        """With its own writer."""
        with mosaic().MDSWriter(out=str(self.folder), columns=self.columns, size_limit=SHARD_BYTES) as writer:
            for sample in stored(reference):
                writer.write(self.encoded(sample))

    @cached_property
    def loader(self) -> Any:
        """Its own."""
        streaming = mosaic()
        dataset = streaming.StreamingDataset(local=str(self.folder), shuffle=True, batch_size=BATCH)
        return streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=self.collated)

    def epoch(self, number: int) -> Iterator[Columns]:
        """The next one: the dataset counts them."""
        yield from self.loader

    def encoded(self, sample: Columns) -> dict[str, Any]:
        """What is written of a sample."""
        return {name: np.ascontiguousarray(array) for name, array in sample.items()}

    def collated(self, samples: list[dict[str, Any]]) -> Columns:
        """A batch."""
        return collate(samples)


class MosaicZstd(Mosaic):
    """All columns of a sample in one zstd frame, a column of bytes."""

    columns: ClassVar[dict[str, str]] = {"rows": "bytes"}

    def encoded(self, sample: Columns) -> dict[str, Any]:
        """One value."""
        return {"rows": packed(sample)}

    def collated(self, samples: list[dict[str, Any]]) -> Columns:
        """A batch."""
        return collate([unpacked(sample["rows"]) for sample in samples])


class HuggingFace(Streamer):
    """Parquet files of list columns, streamed as Arrow; files in random order, samples by a buffer."""

    package = "datasets"
    shuffle = f"shards, then a buffer of {BUFFER}"
    builder, suffix = "parquet", "parquet"

    def write(self, reference: Reference) -> None:
        """Files of about the size of the others' shards."""
        import pyarrow as pa

        samples = stored(reference)
        tokens = int(reference.first[-1])
        bytes_per_token = sum(array.nbytes for array in next(stored(reference)).values()) / reference.first[1]
        per_file = max(1, int(len(reference) * SHARD_BYTES / (tokens * bytes_per_token)))
        for number in itertools.count():
            group = list(itertools.islice(samples, per_file))
            if not group:
                return
            columns = {name: [sample[name].reshape(-1) for sample in group] for name in STORED}
            types = {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in STORED.items()}
            table = pa.table({name: pa.array(columns[name], types[name]) for name in STORED})
            self.write_table(table, self.folder / f"{number:06d}.{self.suffix}")

    @cached_property
    def dataset(self) -> Any:
        """It gives Arrow tables: its numpy format would make int64 of every id."""
        import datasets

        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # a pause of 5 s after an epoch: ten epochs long here
        files = [str(path) for path in sorted(self.folder.iterdir())]
        streamed = datasets.load_dataset(
            self.builder,
            data_files=files,
            split="train",
            streaming=True,
            cache_dir=str(self.folder.parent / "datasets"),
        )
        return streamed.with_format("arrow").shuffle(seed=0, buffer_size=BUFFER)

    def epoch(self, number: int) -> Iterator[Columns]:
        """In batches of rows."""
        self.dataset.set_epoch(number)
        for table in self.dataset.iter(batch_size=BATCH):
            yield collate([self.columns(table, row) for row in range(len(table))])

    def write_table(self, table: Any, path: Path) -> None:
        """One file."""
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path, compression="zstd", compression_level=ZSTD_LEVEL, row_group_size=BATCH)

    def columns(self, table: Any, row: int) -> Columns:
        """One sample's columns."""
        arrays = {name: table[name][row].values.to_numpy(zero_copy_only=False) for name in STORED}
        n = len(arrays["input_ids"])
        return {name: array.reshape(n, -1) if name in OF_ENTRIES else array for name, array in arrays.items()}


class HuggingFaceArrow(HuggingFace):
    """Uncompressed Arrow files."""

    builder, suffix = "arrow", "arrow"

    def write_table(self, table: Any, path: Path) -> None:
        """One file."""
        import pyarrow as pa

        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH)


OURS, OURS_ONE_THREAD = "this cache", "this cache, one thread"
PLAIN, COMPRESSED = "u16 + f16", "zstd"
STREAMERS: dict[str, type[Streamer]] = {
    OURS: Ours,
    OURS_ONE_THREAD: OursOneThread,
    f"webdataset, {COMPRESSED}": WebDatasetZstd,
    f"litdata, {COMPRESSED}": LitDataZstd,
    f"mosaicml-streaming, {COMPRESSED}": MosaicZstd,
    f"datasets, Parquet, {COMPRESSED}": HuggingFace,
    f"webdataset, {PLAIN}": WebDatasetNpy,
    f"litdata, {PLAIN}": LitData,
    f"mosaicml-streaming, {PLAIN}": Mosaic,
    f"datasets, Arrow, {PLAIN}": HuggingFaceArrow,
}


def stored(reference: Reference) -> Iterator[Columns]:
    """Every sample as others store it."""
    for position in range(len(reference)):
        yield {name: np.asarray(array, STORED[name]) for name, array in reference.sample(position).items()}


def packed(sample: Columns) -> bytes:
    """All columns of a sample in one zstd frame, after their numbers of rows, entries, and log-partitions."""
    sizes = np.array([*sample["ids"].shape, sample["log_partition"].shape[1]], np.int64)
    parts = [sizes.tobytes(), *(sample[name].tobytes() for name in STORED)]
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(parts))


def unpacked(frame: bytes) -> Columns:
    """What ``packed`` was given."""
    data = zstandard.decompress(frame)
    n, k, t = np.frombuffer(data, np.int64, 3).tolist()
    shapes = {"input_ids": (n,), "ids": (n, k), "logprobs": (n, k), "next_logprob": (n,), "log_partition": (n, t)}
    columns, offset = {}, 24
    for name, shape in shapes.items():
        columns[name] = np.frombuffer(data, STORED[name], math.prod(shape), offset).reshape(shape)
        offset += columns[name].nbytes
    return columns


def mosaic() -> ModuleType:
    """``streaming``, without its datasets of pictures: they import torchvision, which is nowhere else needed."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return importlib.import_module("streaming")
