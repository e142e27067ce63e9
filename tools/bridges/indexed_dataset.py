"""Writer of Megatron-LM's indexed data sets: ``PREFIX.bin`` has all sequences' values, ``PREFIX.idx`` their places.

Derived from the public sources of NVIDIA/Megatron-LM: megatron/core/datasets/indexed_dataset.py. The index, all little
endian: MAGIC; version 1 (uint64); code of the values' dtype (uint8); number of sequences N (uint64); number of document
boundaries (uint64); lengths in values, int32 [N]; places in PREFIX.bin in bytes, int64 [N]; and the boundaries as
sequence numbers, int64. Here each sequence is a document, so the boundaries are 0 to N.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from schemas.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
CODES = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.float32): 7, np.dtype(np.uint16): 8}
MAX_LENGTH = 2**31 - 1  # values of a sequence: lengths are int32


class IndexedDataset:
    """A pair of files being written; closed, with the index, at the end of a ``with`` block that does not fail."""

    def __init__(self, prefix: Path, dtype: type[np.generic]) -> None:
        self._prefix, self._dtype = prefix, np.dtype(dtype)
        self._lengths: list[np.ndarray] = []
        self._values = prefix.with_suffix(".bin").open("xb")

    def __enter__(self) -> "IndexedDataset":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._values.close()
        if kind is None:
            self._write_index()

    def add(self, sequences: Sequence[np.ndarray]) -> None:
        """Append sequences of any shapes, flattened. Raises UserError when one is too long."""
        sizes = [sequence.size for sequence in sequences]
        if max(sizes) > MAX_LENGTH:
            raise UserError(f"{self._prefix.name}: a sequence of {max(sizes)} values, wanted at most {MAX_LENGTH}")
        self._lengths.append(np.array(sizes, "<i4"))
        for sequence in sequences:
            self._values.write(np.ascontiguousarray(sequence, self._dtype.newbyteorder("<")).data)

    def _write_index(self) -> None:
        lengths = np.concatenate(self._lengths)
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        n = len(lengths)
        with self._prefix.with_suffix(".idx").open("xb") as index:
            index.write(MAGIC + struct.pack("<QBQQ", 1, CODES[self._dtype], n, n + 1))
            for column in (lengths, np.concatenate([[0], ends[:-1]]), np.arange(n + 1)):
                index.write(column.astype(column.dtype.newbyteorder("<")).data)
