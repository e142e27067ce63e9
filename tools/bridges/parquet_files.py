"""Bounded reading of untrusted Parquet files, a few rows at a time."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import UserError
from schemas.regular_files import open_regular

VALUES_AT_A_TIME = 1 << 23  # of the largest column
MAX_ROW_VALUES = 1 << 28  # of one column, averaged over a row group
MAX_ROWS_AT_A_TIME = 1024
DENSE_VALUES = 1 << 25  # a column of a row group with more values than this …
MAX_VALUES_OF_A_BYTE = 256  # … may not decode to more values per compressed byte: a row could exhaust memory
MAX_TEXT_BYTES = 1 << 27  # of one column of a block


class RowBlock(NamedTuple):
    """Consecutive rows of a file."""

    file: Path
    first_row: int  # counted in the file
    rows: pa.RecordBatch


def files_below(path: str, ending: str = "parquet") -> list[Path]:
    """The files with this ending below a folder, in natural order of their names; or the one file. Raises UserError."""
    if "://" in path:
        raise UserError(f"{path}: only local files can be imported; download them first")
    top = Path(path)
    if top.is_file():
        return [top]
    if not top.is_dir():
        raise UserError(f"{path}: no such file or folder; give the one that holds the files")
    found = [file for file in top.rglob(f"*.{ending}") if file.is_file()]
    if not found:
        raise UserError(f"{path}: no *.{ending} file below it; give the folder that holds them")
    return sorted(found, key=lambda file: _natural_order(str(file.relative_to(top))))


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def open_file(file: Path) -> pq.ParquetFile:
    """Open a file and read its metadata. Raises UserError."""
    try:
        with open_regular(file) as opened:
            schema = pq.read_schema(opened)
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        return pq.ParquetFile(file, read_dictionary=texts)  # a text repeated in many rows is in memory once
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable Parquet file: {error}") from None


def number_of_rows(files: Sequence[Path]) -> int:
    """Rows of all files together. Raises UserError."""
    total = 0
    for file in files:
        with open_file(file) as opened:
            total += opened.metadata.num_rows
    return total


def read_blocks(file: Path, columns: Sequence[str]) -> Iterator[RowBlock]:
    """All rows of a file, of those of ``columns`` it has. Raises UserError when it is damaged or rows are too large."""
    with open_file(file) as opened:
        names = [name for name in columns if name in opened.schema_arrow.names]
        first_row = 0
        for group in range(opened.num_row_groups):
            try:
                step = _rows_at_a_time(opened.metadata.row_group(group), file, first_row)
                for rows in opened.iter_batches(step, row_groups=[group], columns=names):
                    yield RowBlock(file, first_row, _decoded(rows, file, first_row))
                    first_row += rows.num_rows
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read from row {first_row} on: {error}") from None


def _decoded(rows: pa.RecordBatch, file: Path, first_row: int) -> pa.RecordBatch:
    """The rows with dictionary-encoded texts decoded. Raises UserError when these would take too much memory."""
    columns = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
            if (pc.sum(lengths.cast(pa.int64())).as_py() or 0) > MAX_TEXT_BYTES:
                raise UserError(
                    f"{file}: rows from {first_row} on: {name}: over {MAX_TEXT_BYTES} bytes of text in a block of rows"
                )
            column = column.dictionary_decode()
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def _rows_at_a_time(group: Any, file: Path, first_row: int) -> int:
    """Rows per block of a row group, from its metadata. Raises UserError when rows are too large."""
    for column in map(group.column, range(group.num_columns)):
        if column.num_values > max(DENSE_VALUES, MAX_VALUES_OF_A_BYTE * column.total_compressed_size):
            raise UserError(
                f"{file}: rows from {first_row} on: {column.path_in_schema}: {column.num_values} values in "
                f"{column.total_compressed_size} compressed bytes, wanted at most {MAX_VALUES_OF_A_BYTE} values a byte"
            )
    values = max((group.column(i).num_values for i in range(group.num_columns)), default=0)
    mean = values // max(1, group.num_rows)
    if mean > MAX_ROW_VALUES:
        raise UserError(
            f"{file}: rows from {first_row} on: {mean} values of a column per row, wanted at most {MAX_ROW_VALUES}"
        )
    return max(1, min(MAX_ROWS_AT_A_TIME, VALUES_AT_A_TIME // max(1, mean)))
