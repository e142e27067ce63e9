"""Streaming readers of top-k rows, each with the storage and loader that its documentation recommends.

Compressed variants use zstd level 3, through the library's own option where it has one. Every loader runs in the
calling process, without workers, and every batch is padded by the same function. Packages are imported where they are
used, because some exist only in an environment of their own.
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

BUFFER = 100  # samples in a shuffle buffer
SMALL_SHARD = 1 << 23  # bytes; for readers that are faster from a store with shards this small


class WebDatasetNpy(Streamer):
    """One tar member per column, as ``.npy``; shards in random order, samples shuffled in a buffer.

    From a store, it reads the output of a command: curl over HTTP.
    """

    package = "webdataset"
    shuffle = f"shards, then a buffer of {BUFFER}"

    def write(self, reference: Reference) -> None:
        """Write with webdataset's own writer."""
        import webdataset

        with webdataset.ShardWriter(f"{self.folder}/%06d.tar", maxsize=self.shard_bytes, verbose=0) as writer:
            for number, sample in enumerate(stored(reference)):
                writer.write({"__key__": f"{number:08d}", **self.members(sample)})

    def epoch(self, number: int) -> Iterator[Columns]:
        """Shuffled before decoding, when samples are smaller."""
        import webdataset

        paths = self.files()
        files = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=number, empty_check=False)
        shuffled = files.shuffle(BUFFER, seed=number)
        yield from self.decoded(shuffled).batched(BATCH, collation_fn=collate, partial=True)

    def files(self) -> list[str]:
        """Local paths, or HTTP URLs."""
        files = super().files()
        return (
            files if self.remote is None else [self.remote.http + file.removeprefix(self.remote.url) for file in files]
        )

    def members(self, sample: Columns) -> dict[str, Any]:
        """A sample's tar members: extension → value."""
        return {f"{name}.npy": array for name, array in sample.items()}

    def decoded(self, samples: Any) -> Any:
        """The pipeline from members to columns."""
        return samples.decode().map(lambda sample: {name: sample[f"{name}.npy"] for name in STORED})


class WebDatasetZstd(WebDatasetNpy):
    """All columns of a sample in one zstd frame."""

    def members(self, sample: Columns) -> dict[str, Any]:
        """A single member."""
        return {"rows.zst": packed(sample)}

    def decoded(self, samples: Any) -> Any:
        """A custom decoder, as a user would write it."""
        return samples.map(lambda sample: unpacked(sample["rows.zst"]))


class LitData(Streamer):
    """Chunks of numpy columns; chunks and the samples inside them in random order.

    Samples are decoded one by one; the default is several at a time. Its S3 client refuses servers without TLS, and the
    library exposes no setting for that, so an internal option is changed.
    """

    package = "litdata"
    foreign = True
    shuffle = "chunks, then blocks within one"
    shard_bytes = SMALL_SHARD
    compression: ClassVar[str | None] = None
    settings: ClassVar[dict[str, Any]] = {"batch_decode": 0}

    def write(self, reference: Reference) -> None:
        """Write with the writer that ``litdata.optimize`` runs in workers."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.folder), chunk_bytes=self.shard_bytes, compression=self.compression)
        for number, sample in enumerate(stored(reference)):
            writer[number] = dict(sample)
        writer.done()
        writer.merge()

    @cached_property
    def loader(self) -> Any:
        """litdata's own loader."""
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
        """The next epoch: the loader counts them itself."""
        yield from self.loader


class LitDataDefault(LitData):
    """litdata with its default settings."""

    settings: ClassVar[dict[str, Any]] = {}


class LitDataZstd(LitData):
    """litdata with its own compression."""

    compression = f"zstd:{ZSTD_LEVEL}"


class Mosaic(Streamer):
    """MDS shards of arrays in ``py1e`` order. Its own compression is not used: it unpacks shards once, permanently."""

    package = "mosaicml-streaming"
    foreign = True
    shuffle = "shards, then blocks (py1e)"
    shard_bytes = SMALL_SHARD
    columns: ClassVar[dict[str, str]] = {name: f"ndarray:{np.dtype(kind).name}" for name, kind in STORED.items()}

    def write(self, reference: Reference) -> None:
        """Write with mosaicml-streaming's own writer."""
        with mosaic().MDSWriter(out=str(self.folder), columns=self.columns, size_limit=self.shard_bytes) as writer:
            for sample in stored(reference):
                writer.write(self.encoded(sample))

    @cached_property
    def loader(self) -> Any:
        """mosaicml-streaming's own loader."""
        streaming = mosaic()
        where = {"local": str(self.folder)}
        if self.remote is not None:
            where = {"remote": self.remote.url, "local": str(self.remote.copies)}
        dataset = streaming.StreamingDataset(**where, shuffle=True, batch_size=BATCH)
        return streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=self.collated)

    def epoch(self, number: int) -> Iterator[Columns]:
        """The next epoch: the dataset counts them itself."""
        yield from self.loader

    def encoded(self, sample: Columns) -> dict[str, Any]:
        """A sample's stored columns."""
        return {name: np.ascontiguousarray(array) for name, array in sample.items()}

    def collated(self, samples: list[dict[str, Any]]) -> Columns:
        """Pad stored samples into a batch."""
        return collate(samples)


class MosaicZstd(Mosaic):
    """All columns of a sample in one zstd frame, stored as a column of bytes."""

    columns: ClassVar[dict[str, str]] = {"rows": "bytes"}

    def encoded(self, sample: Columns) -> dict[str, Any]:
        """A single column."""
        return {"rows": packed(sample)}

    def collated(self, samples: list[dict[str, Any]]) -> Columns:
        """Decompress and pad stored samples into a batch."""
        return collate([unpacked(sample["rows"]) for sample in samples])


class HuggingFace(Streamer):
    """Parquet files of list columns, streamed as Arrow; files in random order, samples shuffled in a buffer."""

    package = "datasets"
    shuffle = f"shards, then a buffer of {BUFFER}"
    builder, suffix = "parquet", "parquet"

    def write(self, reference: Reference) -> None:
        """Write files of about the size of the other readers' shards."""
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
        """The streamed data set, in Arrow format: its numpy format would widen every id to int64."""
        import datasets

        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # default: 5 s after an epoch, as long as ten epochs here
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
        """Batches of BATCH samples."""
        self.dataset.set_epoch(number)
        for table in self.dataset.iter(batch_size=BATCH):
            yield collate([self.columns(table, row) for row in range(len(table))])

    def write_table(self, table: Any, path: Path) -> None:
        """Write one file."""
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
        """Write one file."""
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
    """Import ``streaming`` without its vision datasets, which need torchvision."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return importlib.import_module("streaming")
