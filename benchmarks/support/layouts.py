"""Other systems' layouts of top-k rows, implemented from their public descriptions, for comparison.

Each writes the same sequences to a folder and reads batches into padded arrays. They store what is needed for the
accuracy of our cache and nothing else: ids, log-probabilities and the two scalars of each row.

- ``Raw``: memory-mapped u32 and f32 arrays, the upper bound of reading speed.
- ``Halves``: the same as u16 and f16.
- ``Arrow``: per sequence an Arrow IPC stream with zstd buffers, as members of a WebDataset tar.
- ``Parquet``: DistillKit's, a Parquet file of nested lists: per row the bytes of its bit-packed ids and of its
  log-probabilities as float16 (``exact_k`` = k; its quantised forms are off by more than 1/32 nat at 8 bits).
- ``Megatron``: Megatron-LM's, float16 values and u16 ids of each sequence as a zstd (level 3) member of a tar.
"""

import io
import itertools
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import webdataset
import zstandard

from teacher_cache.records import LogitsSample

ZSTD_LEVEL = 3
RAW, ARROW = "raw u32 + f32, memory-mapped", "Arrow IPC + zstd, webdataset"
DISTILLKIT = "Parquet of nested lists (DistillKit)"


@dataclass(frozen=True)
class Rows:
    """The rows of one sequence, or a padded batch of them (with R sequences in front)."""

    ids: np.ndarray  # int32 [S, K]
    logprobs: np.ndarray  # float32 [S, K]
    scalars: np.ndarray  # float32 [S, 2]; realised token's log-probability, and a log-partition

    @staticmethod
    def of(sample: LogitsSample) -> "Rows":
        """The part of a sample that the layouts store."""
        scalars = np.stack([np.nan_to_num(sample.next_logprob), sample.log_partition[:, -1]], axis=1)
        return Rows(sample.ids, sample.logprobs, scalars)

    @staticmethod
    def padded(samples: Sequence["Rows"], k: int) -> "Rows":
        """Pad sequences into a batch."""
        shape = (len(samples), max(len(sample.ids) for sample in samples))
        batch = Rows(
            np.empty((*shape, k), np.int32), np.empty((*shape, k), np.float32), np.empty((*shape, 2), np.float32)
        )
        for r, sample in enumerate(samples):
            n = len(sample.ids)
            batch.ids[r, :n], batch.logprobs[r, :n], batch.scalars[r, :n] = sample.ids, sample.logprobs, sample.scalars
            batch.ids[r, n:], batch.logprobs[r, n:], batch.scalars[r, n:] = 0, -np.inf, 0
        return batch


class Layout(ABC):
    """Sequences stored in a folder."""

    def __init__(self, folder: Path, samples: Sequence[Rows]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.k = samples[0].ids.shape[1]
        self.folder = folder
        self._first = np.cumsum([0, *(len(sample.ids) for sample in samples)])
        self._write(samples)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of all files per token."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) / int(self._first[-1])

    def read(self, numbers: Sequence[int]) -> Rows:
        """A padded batch of the sequences with these numbers."""
        return Rows.padded([self._sample(number) for number in numbers], self.k)

    def sequential(self, batch: int) -> Iterator[Rows]:
        """All sequences in order, in padded batches."""
        for start in range(0, len(self._first) - 1, batch):
            yield self.read(range(start, min(start + batch, len(self._first) - 1)))

    @abstractmethod
    def _write(self, samples: Sequence[Rows]) -> None: ...

    @abstractmethod
    def _sample(self, number: int) -> Rows: ...


class Raw(Layout):
    """Memory-mapped arrays."""

    dtypes: tuple[type, type] = (np.uint32, np.float32)

    def _write(self, samples: Sequence[Rows]) -> None:
        integer, floating = self.dtypes
        self._columns = []
        for name, dtype in (("ids", integer), ("logprobs", floating), ("scalars", np.float32)):
            whole = np.concatenate([getattr(sample, name) for sample in samples]).astype(dtype)
            np.save(self.folder / f"{name}.npy", whole)
            self._columns.append(np.load(self.folder / f"{name}.npy", mmap_mode="r"))

    def _sample(self, number: int) -> Rows:
        rows = slice(*self._first[number : number + 2])
        return Rows(*(column[rows] for column in self._columns))


class Halves(Raw):
    """Memory-mapped arrays of half the width."""

    dtypes = (np.uint16, np.float16)


class Tar(Layout):
    """Tar members, read at their offsets."""

    extension: str

    def _write(self, samples: Sequence[Rows]) -> None:
        self._path = self.folder / "samples.tar"
        with tarfile.open(self._path, "w") as tar:
            for number, sample in enumerate(samples):
                payload = self._encode(sample)
                header = tarfile.TarInfo(f"{number:08d}.{self.extension}")
                header.size = len(payload)
                tar.addfile(header, io.BytesIO(payload))
        with tarfile.open(self._path) as tar:
            self._spans = [(member.offset_data, member.size) for member in tar]
        self._file = self._path.open("rb")

    def _sample(self, number: int) -> Rows:
        offset, size = self._spans[number]
        self._file.seek(offset)
        return self._decode(self._file.read(size))

    @abstractmethod
    def _encode(self, sample: Rows) -> bytes: ...

    @abstractmethod
    def _decode(self, payload: bytes) -> Rows: ...


class Arrow(Tar):
    """Arrow IPC streams with zstd buffers; sequential reads go through ``webdataset``."""

    extension = "arrow"
    types = (pa.uint16(), pa.float16(), pa.float32())

    def _encode(self, sample: Rows) -> bytes:
        arrays = [
            pa.array(column.reshape(-1).astype(kind.to_pandas_dtype()))
            for column, kind in zip((sample.ids, sample.logprobs, sample.scalars), self.types, strict=True)
        ]
        lists = [pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), array) for array in arrays]
        batch = pa.RecordBatch.from_arrays(lists, ["ids", "logprobs", "scalars"])
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(batch)
        return sink.getvalue()

    def _decode(self, payload: bytes) -> Rows:
        batch = pa.ipc.open_stream(payload).read_next_batch()
        ids, logprobs, scalars = (column.flatten().to_numpy(zero_copy_only=False) for column in batch.columns)
        return Rows(ids.reshape(-1, self.k), logprobs.reshape(-1, self.k), scalars.reshape(-1, 2))

    def sequential(self, batch: int) -> Iterator[Rows]:
        """All sequences in order through ``webdataset``, as its users read them."""
        members = webdataset.WebDataset(str(self._path), shardshuffle=False, empty_check=False)
        samples = (self._decode(member[self.extension]) for member in members)
        while group := list(itertools.islice(samples, batch)):
            yield Rows.padded(group, self.k)


class Megatron(Tar):
    """float16 values and u16 ids, zstd level 3."""

    extension = "bin.zst"

    def _encode(self, sample: Rows) -> bytes:
        parts = (
            sample.logprobs.astype(np.float16).tobytes(),
            sample.ids.astype(np.uint16).tobytes(),
            sample.scalars.astype(np.float32).tobytes(),
        )
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(parts))

    def _decode(self, payload: bytes) -> Rows:
        data = zstandard.decompress(payload)
        n_rows = len(data) // (4 * self.k + 8)
        half = 2 * self.k * n_rows
        return Rows(
            np.frombuffer(data, np.uint16, self.k * n_rows, half).reshape(n_rows, self.k),
            np.frombuffer(data, np.float16, self.k * n_rows).reshape(n_rows, self.k),
            np.frombuffer(data, np.float32, 2 * n_rows, 2 * half).reshape(n_rows, 2),
        )


class Parquet(Layout):
    """One row group of nested lists per sequence, for random access."""

    def _write(self, samples: Sequence[Rows]) -> None:
        self._path = self.folder / "samples.parquet"
        nested = pa.list_(pa.list_(pa.uint8()))
        schema = pa.schema(
            [
                ("bytepacked_indices", nested),
                ("compressed_logprobs", nested),
                ("scalars", pa.list_(pa.float32())),
            ]
        )
        with pa.parquet.ParquetWriter(self._path, schema) as writer:
            for sample in samples:
                ids = sample.ids.astype(np.uint16).view(np.uint8)
                logprobs = sample.logprobs.astype(np.float16).view(np.uint8)
                row = {
                    "bytepacked_indices": ids.tolist(),
                    "compressed_logprobs": logprobs.tolist(),
                    "scalars": sample.scalars.reshape(-1).tolist(),
                }
                writer.write_table(pa.Table.from_pylist([row], schema=schema))
        self._file = pa.parquet.ParquetFile(self._path)

    def _sample(self, number: int) -> Rows:
        table: Any = self._file.read_row_group(number)
        ids, logprobs = (table[name].combine_chunks().flatten().flatten().to_numpy() for name in table.column_names[:2])
        scalars = table["scalars"].combine_chunks().flatten().to_numpy()
        return Rows(
            ids.view(np.uint16).reshape(-1, self.k),
            logprobs.view(np.float16).reshape(-1, self.k),
            scalars.reshape(-1, 2),
        )


LAYOUTS: dict[str, type[Layout]] = {
    RAW: Raw,
    "u16 + f16, memory-mapped": Halves,
    ARROW: Arrow,
    DISTILLKIT: Parquet,
    "f16 + u16 + zstd tar (Megatron-LM)": Megatron,
}
