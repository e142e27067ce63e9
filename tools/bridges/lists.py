"""Arrow columns of lists and of nested lists, to and from numpy without a Python object per entry.

A column has one list per sequence of a batch. Reading checks types, nulls and lengths, since files may be hostile.
Shape letters: S numbers of a list, P inner lists, K entries each, E entries of all inner lists.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from schemas.errors import UserError

MAX_ENTRIES = 2**31 - 1  # per column and batch: Arrow's list offsets are int32
MAX_PADDED = 1 << 28  # padded entries of one sequence


def check_size(n_rows: int, width: int, where: str) -> None:
    """Raise UserError when [n_rows, width] is more than one sequence may take in memory."""
    if n_rows * width > MAX_PADDED:
        raise UserError(f"{where}: {n_rows} rows of {width} entries, wanted at most {MAX_PADDED} entries a sequence")


class Ragged(NamedTuple):
    """The inner lists of one sequence."""

    values: np.ndarray  # [E], concatenated
    lengths: np.ndarray  # int64 [P]

    def padded(self, width: int, fill: float) -> np.ndarray:
        """Right-pad the lists with ``fill``: [P, width]. No list may be longer than ``width``."""
        rows = np.full((len(self.lengths), width), fill, self.values.dtype)
        rows[np.arange(width) < self.lengths[:, None]] = self.values
        return rows


def lists(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """A column of lists, from one [S] array per sequence."""
    return pa.ListArray.from_arrays(_offsets([len(part) for part in parts]), pa.array(np.concatenate(parts)))


def lists_of_lists(parts: Sequence[np.ndarray], counts: Sequence[np.ndarray] | None = None) -> pa.ListArray:
    """A column of nested lists, from one [P, K] array per sequence, of each row its first ``counts`` [P] entries.

    Raises UserError when the batch is too large for Arrow.
    """
    if counts is None:
        widths = np.concatenate([np.full(len(part), part.shape[1], np.int64) for part in parts])
        values = np.concatenate([part.reshape(-1) for part in parts])
    else:
        widths = np.concatenate(counts)
        values = np.concatenate(
            [part[np.arange(part.shape[1]) < count[:, None]] for part, count in zip(parts, counts, strict=True)]
        )
    inner = pa.ListArray.from_arrays(_offsets(widths), pa.array(values))
    return pa.ListArray.from_arrays(_offsets([len(part) for part in parts]), inner)


def _offsets(lengths: Any) -> pa.Array:
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(ends) and ends[-1] > MAX_ENTRIES:
        raise UserError(
            f"a column of {ends[-1]} entries in one batch, wanted at most {MAX_ENTRIES} (Arrow's 32-bit offsets)"
        )
    return pa.array(np.concatenate([[0], ends]).astype(np.int32))


def texts(column: pa.Array, where: str) -> list[str]:
    """The strings of a column. Raises UserError for other types, nulls, and invalid UTF-8."""
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise UserError(f"{where}: is {column.type}, wanted string")
    if column.null_count:
        raise UserError(f"{where}: holds nulls")
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: holds a string that is not UTF-8: {error.reason}") from None


def read_lists(column: pa.Array, kind: str, where: str) -> list[np.ndarray]:
    """One [S] array per list of a column; ``kind``: ``integer`` (int64), ``floating`` (float32) or ``boolean``.

    Raises UserError naming ``where``.
    """
    offsets, values = _peel(column, where)
    flat = _numbers(values, kind, where)
    return np.split(flat, offsets[1:-1]) if len(offsets) > 1 else []


def read_lists_of_lists(column: pa.Array, kind: str, where: str) -> list[Ragged]:
    """The inner lists of each sequence of a nested column. Raises UserError naming ``where``."""
    offsets, inner = _peel(column, where)
    inner_offsets, values = _peel(inner, where)
    flat, lengths = _numbers(values, kind, where), np.diff(inner_offsets)
    return [
        Ragged(flat[inner_offsets[start] : inner_offsets[stop]], lengths[start:stop])
        for start, stop in itertools.pairwise(offsets.tolist())
    ]


def _peel(column: Any, where: str) -> tuple[np.ndarray, pa.Array]:
    """Unwrap one level of lists: offsets int64 [N + 1], starting at 0, and the flat values."""
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        raise UserError(f"{where}: is {column.type}, wanted lists")
    if column.null_count:
        raise UserError(f"{where}: holds nulls")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], column.values.slice(offsets[0], offsets[-1] - offsets[0])


def _numbers(values: Any, kind: str, where: str) -> np.ndarray:
    fits = {"integer": pa.types.is_integer, "floating": pa.types.is_floating, "boolean": pa.types.is_boolean}[kind]
    if not fits(values.type):
        raise UserError(f"{where}: holds {values.type}, wanted {kind} numbers")
    if values.null_count:
        raise UserError(f"{where}: holds nulls")
    numbers = values.to_numpy(zero_copy_only=False)
    if kind == "boolean":
        return numbers.astype(bool)
    if kind == "floating":
        return numbers.astype(np.float32, copy=False)
    if numbers.dtype == np.uint64 and len(numbers) and numbers.max() >= 2**63:
        raise UserError(f"{where}: holds {numbers.max()}, wanted numbers below 2^63")
    return numbers.astype(np.int64, copy=False) if numbers.dtype != np.uint8 else numbers
