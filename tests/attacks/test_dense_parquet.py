"""A small Parquet file whose rows stand for gigabytes: it is refused before they are in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import UserError
from tools.bridges.parquet_files import DENSE_VALUES, open_file, read_blocks

MOST = 600 << 20  # of Arrow's own memory


def read(file: Path, *columns: str) -> int:
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    rows = sum(part.rows.num_rows for part in read_blocks(file, columns))
    assert pool.bytes_allocated() - before < MOST
    return rows


def test_one_row_of_many_equal_values(tmp_path: Path) -> None:
    """One row has tens of millions of values, of which a few bytes tell; the mean over all rows looks harmless."""
    n, rows = DENSE_VALUES + 1, 1000
    offsets = pa.array(np.concatenate([[0], np.full(rows, n)]).astype(np.int32))
    values = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(n, np.int8)))
    pq.write_table(pa.table({"ids": values}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"a\.parquet: rows from 0 on: ids.*values in"):
        read(tmp_path / "a.parquet", "ids")


def test_one_text_in_a_thousand_rows(tmp_path: Path) -> None:
    """A text of a megabyte is stored once, and stands in every row."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"text": texts.cast(pa.string())}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"text: over \d+ bytes of text"):
        read(tmp_path / "a.parquet", "text")


def test_ordinary_rows_are_read(tmp_path: Path) -> None:
    """What is equal everywhere and of ordinary size, a mask say, is read as before, and texts are texts."""
    masks = pa.array([[1] * 5000] * 300, pa.list_(pa.int8()))
    table = pa.table({"mask": masks, "text": ["ä", "b", "ä"] * 100})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "mask", "text") == 300
    (block,) = read_blocks(tmp_path / "a.parquet", ("text",))
    assert block.rows.column(0).to_pylist() == ["ä", "b", "ä"] * 100
    assert open_file(tmp_path / "a.parquet").metadata.num_rows == 300
