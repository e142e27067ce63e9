"""Base classes of the layouts that ``cache-tools export`` writes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample

Pairs = Sequence[tuple[TokenSample, Any]]
"""Consecutive samples: tokens, and the record of the layout's signal."""
ABSENT = np.float32(
    -1e4
)  # log-probability of an entry that is not stored; the lowest a cache can store is about -4,090


class Layout(ABC):
    """A layout of tokens and one signal."""

    name: ClassVar[str]
    signal: ClassVar[Literal["logits", "hidden"]] = "logits"
    title: ClassVar[str] = "Logits of a teacher"
    pattern: ClassVar[str | None] = None  # of Parquet files; {number} is the file's number

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @property
    def values_per_row(self) -> int:
        """Values of the signal in one row."""
        return self.manifest.capture.logits.k

    @abstractmethod
    def write(self, batches: Iterable[Pairs], folder: Path, tokens_per_file: int) -> int:
        """Write all samples, at least one, into the folder; returns the number of files.

        ``tokens_per_file`` is for Parquet.
        """

    @abstractmethod
    def about(self) -> str:
        """Markdown for the data set card: what the files hold and how to read them."""

    def stored(self) -> dict[str, str]:
        """What the signal's values are, for the data set card."""
        logits = self.manifest.capture.logits
        return {
            "stored": f"{logits.policy}, k = {logits.k}, rows: {logits.positions}",
            "log-probabilities in the cache": self.manifest.codec.logprobs,
        }


class TableLayout(Layout):
    """A layout of Parquet files with one row per sequence."""

    pattern: ClassVar[str]

    @abstractmethod
    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """One row per sample; every batch has the same schema."""

    def more_files(self) -> dict[str, str]:
        """Additional files: name → text."""
        return {}

    def write(self, batches: Iterable[Pairs], folder: Path, tokens_per_file: int) -> int:
        """Write Parquet files of about ``tokens_per_file`` tokens, and the additional files."""
        n_files = in_file = 0
        writer: pq.ParquetWriter | None = None
        try:
            for pairs in batches:
                batch = self.batch(pairs)
                if writer is None:
                    path = folder / self.pattern.format(number=n_files)
                    path.parent.mkdir(exist_ok=True)
                    writer = pq.ParquetWriter(path, batch.schema, compression="zstd")
                    n_files, in_file = n_files + 1, 0
                writer.write_batch(batch)
                in_file += sum(len(tokens.input_ids) for tokens, _ in pairs)
                if in_file >= tokens_per_file:
                    writer.close()
                    writer = None
        finally:
            if writer is not None:
                writer.close()
        for name, text in self.more_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        return n_files


def every_row(sample: LogitsSample, rows_PX: np.ndarray, fill: float) -> np.ndarray:
    """Scatter the stored rows [P, …] over the sequence [S, …], with ``fill`` at the others."""
    rows_SX = np.full((sample.num_tokens, *rows_PX.shape[1:]), fill, rows_PX.dtype)
    rows_SX[sample.positions] = rows_PX
    return rows_SX


def learned_tokens(tokens: TokenSample) -> np.ndarray:
    """Whether each token's prediction, by the row before it, is to be learned: bool [S]."""
    return np.concatenate([[False], tokens.loss_mask[:-1]])
