"""Streaming readers of top-k rows, each with the storage and the loader that its documentation shows.

Those that compress use zstd, level 3, their own way where they have one. Every loader runs in the process that asks for
the batches, without workers, and every batch is padded by the same function. Packages are imported where they are used,
because some of them are only there in an environment of their own.
"""

import importlib
import itertools
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from benchmarks.streaming.delivered_rows import Columns, Reference, collate
from benchmarks.streaming.ours import Ours, OursMixed, OursOneThread
from benchmarks.streaming.row_storage import BATCH, OF_ENTRIES, STORED, Streamer, packed, stored, unpacked
from benchmarks.support.layouts import ZSTD_LEVEL

BUFFER = 100  # samples, of those that shuffle in a buffer
SMALL_SHARD = 1 << 23  # bytes, of those that read such shards faster from a store than the usual ones


class WebDatasetNpy(Streamer):
    """A tar member a column, as ``.npy``; shards in random order, samples by a buffer.

    It reads a store by a command, whose output it takes: by HTTP with curl.
    """

    package = "webdataset"
    shuffle = f"shards, then a buffer of {BUFFER}"

    def write(self, reference: Reference) -> None:
        """With its own writer."""
        import webdataset

        with webdataset.ShardWriter(f"{self.folder}/%06d.tar", maxsize=self.shard_bytes, verbose=0) as writer:
            for position, sample in enumerate(stored(reference)):
                writer.write({"__key__": f"{position:08d}", **self.members(sample)})

    def epoch(self, number: int) -> Iterator[Columns]:
        """Shuffled while still bytes, which is cheaper to hold."""
        import webdataset

        paths = self.files()
        files = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=number, empty_check=False)
        shuffled = files.shuffle(BUFFER, seed=number)
        yield from self.decoded(shuffled).batched(BATCH, collation_fn=collate, partial=True)

    def files(self) -> list[str]:
        """By HTTP."""
        files = super().files()
        return (
            files if self.remote is None else [self.remote.http + file.removeprefix(self.remote.url) for file in files]
        )

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

    Samples are decoded one by one; the default is some at a time.
    Its client of S3 refuses a server without TLS unless it is told not to, for which there is no setting.
    """

    package = "litdata"
    foreign = True
    shuffle = "chunks, then blocks within one"
    shard_bytes = SMALL_SHARD
    compression: ClassVar[str | None] = None
    settings: ClassVar[dict[str, Any]] = {"batch_decode": 0}

    def write(self, reference: Reference) -> None:
        """With the writer that its ``optimize`` runs in workers."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.folder), chunk_bytes=self.shard_bytes, compression=self.compression)
        for position, sample in enumerate(stored(reference)):
            writer[position] = dict(sample)
        writer.done()
        writer.merge()

    @cached_property
    def loader(self) -> Any:
        """Its own."""
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming import downloader

        where: dict[str, Any] = {"input_dir": str(self.folder)}
        if self.remote is not None:
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
            options = {"endpoint_url": self.remote.endpoint}
            where = {"input_dir": self.remote.url, "cache_dir": str(self.remote.copies), "storage_options": options}
        dataset = StreamingDataset(**where, shuffle=True, drop_last=False, **self.settings)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)

    def epoch(self, number: int) -> Iterator[Columns]:
        """The next one: the loader counts them."""
        yield from self.loader


class LitDataDefault(LitData):
    """With the settings that it comes with."""

    settings: ClassVar[dict[str, Any]] = {}


class LitDataZstd(LitData):
    """Compressed its own way."""

    compression = f"zstd:{ZSTD_LEVEL}"


class Mosaic(Streamer):
    """MDS shards of arrays; its ``py1e`` order. Shards compressed its own way are unzipped for good at first use."""

    package = "mosaicml-streaming"
    foreign = True
    shuffle = "shards, then blocks (py1e)"
    shard_bytes = SMALL_SHARD
    columns: ClassVar[dict[str, str]] = {name: f"ndarray:{np.dtype(kind).name}" for name, kind in STORED.items()}

    def write(self, reference: Reference) -> None:
        """With its own writer."""
        with mosaic().MDSWriter(out=str(self.folder), columns=self.columns, size_limit=self.shard_bytes) as writer:
            for sample in stored(reference):
                writer.write(self.encoded(sample))

    @cached_property
    def loader(self) -> Any:
        """Its own."""
        streaming = mosaic()
        where = {"local": str(self.folder)}
        if self.remote is not None:
            where = {"remote": self.remote.url, "local": str(self.remote.copies)}
        dataset = streaming.StreamingDataset(**where, shuffle=True, batch_size=BATCH)
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
        per_file = max(1, int(len(reference) * self.shard_bytes / (tokens * bytes_per_token)))
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
        streamed = datasets.load_dataset(
            self.builder,
            data_files=self.files(),
            split="train",
            streaming=True,
            cache_dir=str(self.folder.parent / "datasets" if self.remote is None else self.remote.copies),
            storage_options=None if self.remote is None else {"endpoint_url": self.remote.endpoint},
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


OURS, OURS_ONE_THREAD, OURS_MIXED = "this cache", "this cache, one thread", "this cache, two shards mixed"
PLAIN, COMPRESSED = "u16 + f16", "zstd"
STREAMERS: dict[str, type[Streamer]] = {
    OURS: Ours,
    OURS_ONE_THREAD: OursOneThread,
    OURS_MIXED: OursMixed,
    f"webdataset, {COMPRESSED}": WebDatasetZstd,
    f"litdata, {COMPRESSED}": LitDataZstd,
    f"mosaicml-streaming, {COMPRESSED}": MosaicZstd,
    f"datasets, Parquet, {COMPRESSED}": HuggingFace,
    f"webdataset, {PLAIN}": WebDatasetNpy,
    f"litdata, {PLAIN}": LitData,
    f"litdata as it comes, {PLAIN}": LitDataDefault,
    f"mosaicml-streaming, {PLAIN}": Mosaic,
    f"datasets, Arrow, {PLAIN}": HuggingFaceArrow,
}


def mosaic() -> ModuleType:
    """``streaming``, without its datasets of pictures: they import torchvision, which is nowhere else needed."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return importlib.import_module("streaming")
