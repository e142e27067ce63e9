"""Base class of the layouts that ``cache-tools export`` writes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample

Pairs = Sequence[tuple[TokenSample, LogitsSample]]


class Layout(ABC):
    """A Parquet layout with one row per sequence."""

    name: ClassVar[str]
    pattern: ClassVar[str]  # of file names; {number} is the file's number

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """One row per sample; every batch has the same schema."""

    @abstractmethod
    def about(self) -> str:
        """Markdown for the data set card: what the columns hold and how to read them."""

    def more_files(self) -> dict[str, str]:
        """Additional files: name → text."""
        return {}


def every_row(sample: LogitsSample, rows_PX: np.ndarray, fill: float) -> np.ndarray:
    """Scatter the stored rows [P, …] over the sequence [S, …], with ``fill`` at the others."""
    rows_SX = np.full((sample.num_tokens, *rows_PX.shape[1:]), fill, rows_PX.dtype)
    rows_SX[sample.positions] = rows_PX
    return rows_SX
