"""What a layout to export to has to say."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample

Pairs = Sequence[tuple[TokenSample, LogitsSample]]


class Layout(ABC):
    """A Parquet layout: one row a sequence."""

    name: ClassVar[str]
    pattern: ClassVar[str]  # of the Parquet files, {number} being theirs

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """The rows of these samples; every batch has the same schema."""

    @abstractmethod
    def about(self) -> str:
        """Markdown for the data set's card: what the columns hold and how they are read."""

    def more_files(self) -> dict[str, str]:
        """Other files, by name."""
        return {}


def every_row(sample: LogitsSample, rows_PX: np.ndarray, fill: float) -> np.ndarray:
    """[S, …]: ``rows_PX`` at the stored rows, ``fill`` at the others."""
    rows_SX = np.full((sample.num_tokens, *rows_PX.shape[1:]), fill, rows_PX.dtype)
    rows_SX[sample.positions] = rows_PX
    return rows_SX
