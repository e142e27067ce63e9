"""The ``tokens`` signal: plain Arrow columns, readable without this project."""

import numpy as np
import pyarrow as pa

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import read_row, write_row
from teacher_cache.records import TokenSample


def encode_tokens(sample: TokenSample) -> bytes:
    """The payload of one sequence's tokens member."""
    return write_row(TOKENS_SCHEMA, {name: getattr(sample, name) for name in TOKENS_SCHEMA.names})


def decode_tokens(payload: bytes, num_tokens: int | None, vocab_size: int) -> TokenSample:
    """Decode a payload of ``num_tokens`` tokens (None: not known); raises CorruptCacheError on wrong lengths or ids."""
    batch = read_row(TOKENS_SCHEMA, payload)
    strings = {name: batch.column(name)[0].as_py() for name in ("key", "source_id", "layer", "text")}
    arrays = {name: _values(batch.column(name)) for name in ("input_ids", "loss_mask", "byte_start", "byte_end")}
    num_tokens = len(arrays["input_ids"]) if num_tokens is None else num_tokens
    for name, array in arrays.items():
        if len(array) != num_tokens:
            raise CorruptCacheError(f"column {name} has {len(array)} entries, the index says {num_tokens}")
    if arrays["input_ids"].max() >= vocab_size:
        raise CorruptCacheError(f"token id {arrays['input_ids'].max()} is outside the vocabulary of {vocab_size}")
    if arrays["loss_mask"][-1]:
        raise CorruptCacheError("the last row is in the loss mask, though no token follows it")
    return TokenSample(**strings, **arrays)


def decode_training_columns(payload: bytes, num_tokens: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Only ``input_ids`` uint32 [S] and ``loss_mask`` bool [S]: what a training batch needs."""
    batch = read_row(TOKENS_SCHEMA, payload)
    input_ids = _values(batch.column("input_ids"))
    loss_mask = _values(batch.column("loss_mask"))
    if not len(input_ids) == len(loss_mask) == num_tokens:
        raise CorruptCacheError(f"columns have {len(input_ids)} and {len(loss_mask)} entries, wanted {num_tokens}")
    if input_ids.max() >= vocab_size:
        raise CorruptCacheError(f"token id {input_ids.max()} is outside the vocabulary of {vocab_size}")
    return input_ids, loss_mask


def _values(column: pa.ListArray) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False)
