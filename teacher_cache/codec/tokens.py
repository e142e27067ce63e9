"""The ``tokens`` signal: plain Arrow columns, readable without this project."""

import numpy as np

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import Row, RowReader, write_row
from teacher_cache.records import TokenSample

_READER = RowReader(TOKENS_SCHEMA)


def encode_tokens(sample: TokenSample) -> bytes:
    """The payload of one sequence's tokens member."""
    return write_row(TOKENS_SCHEMA, {name: getattr(sample, name) for name in TOKENS_SCHEMA.names})


def decode_tokens(payload: bytes, num_tokens: int | None, vocab_size: int) -> TokenSample:
    """Decode a payload of ``num_tokens`` tokens (None: not known).

    Raises CorruptCacheError on wrong lengths, ids outside the vocabulary, or byte spans outside the text.
    """
    row = _READER.read(payload)
    num_tokens = len(row.values("input_ids")) if num_tokens is None else num_tokens
    sample = TokenSample(
        key=row.text("key"),
        source_id=row.text("source_id"),
        layer=row.text("layer"),
        text=row.text("text"),
        input_ids=_ids(row, num_tokens, vocab_size),
        loss_mask=_array(row, "loss_mask", num_tokens),
        byte_start=_array(row, "byte_start", num_tokens),
        byte_end=_array(row, "byte_end", num_tokens),
    )
    if sample.loss_mask[-1]:
        raise CorruptCacheError("the last row is in the loss mask, though no token follows it")
    n_bytes = len(sample.text.encode())
    if (sample.byte_start > sample.byte_end).any() or sample.byte_end.max() > n_bytes:
        raise CorruptCacheError(f"a token's byte span ends before it starts or beyond the text of {n_bytes} bytes")
    return sample


def decode_training_columns(payload: bytes, num_tokens: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Only ``input_ids`` uint32 [S] and ``loss_mask`` bool [S]: what a training batch needs."""
    row = _READER.read(payload)
    return _ids(row, num_tokens, vocab_size), _array(row, "loss_mask", num_tokens)


def _ids(row: Row, num_tokens: int, vocab_size: int) -> np.ndarray:
    ids = _array(row, "input_ids", num_tokens)
    if ids.max() >= vocab_size:
        raise CorruptCacheError(f"token id {ids.max()} is outside the vocabulary of {vocab_size}")
    return ids


def _array(row: Row, name: str, num_tokens: int) -> np.ndarray:
    array = row.values(name)
    if len(array) != num_tokens or num_tokens == 0:
        raise CorruptCacheError(f"column {name} has {len(array)} entries, wanted {num_tokens or 'at least 1'}")
    return array
