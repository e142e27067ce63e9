"""Parquet files and data sets saved by Hugging Face ``datasets``; reads only the needed columns."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.content_parts import Part
from teacher_cache.corpus.documents import Record

_BATCH_ROWS = 256
SelectColumns = Callable[[list[str]], list[str]]  # from a table's columns those to read; all if no shape fits


def read_parquet(part: Part, select: SelectColumns) -> Iterator[Record]:
    """Yield the rows of a file, counted from 1. Raises UserError if it is not a Parquet file."""
    try:
        table = pq.ParquetFile(part.stream)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=select(table.schema_arrow.names)):
            for fields in batch.to_pylist():
                number += 1
                yield f"{part.name}#{number}", f"{part.path}: record {number}", fields
    except (pa.ArrowException, ValueError, LookupError) as error:  # ValueError: names or values that are not UTF-8
        raise UserError(f"{part.path}: not a readable Parquet file: {error}") from None


def read_saved(source: SourceConfig, where: str, select: SelectColumns) -> Iterator[Record]:
    """Yield the rows of the data set that ``save_to_disk`` wrote to ``source.path``. Raises UserError."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{where}.format: hf_dataset requires `datasets`; run `pip install datasets`") from None
    try:
        data: Any = datasets.load_from_disk(source.path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{where}.path: {source.path}: not a data set written by save_to_disk: {error}") from None
    if isinstance(data, datasets.DatasetDict):
        raise UserError(f"{where}.path: {source.path} holds the splits {sorted(data)}; append one of them to `path`")
    name = source.path.rstrip("/").rsplit("/", 1)[-1]
    try:
        for number, fields in enumerate(data.select_columns(select(data.column_names)), start=1):
            yield f"{name}#{number}", f"{source.path}: record {number}", fields
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise UserError(f"{where}.path: {source.path}: cannot be read: {error}") from None
