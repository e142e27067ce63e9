"""Compiled loop that decodes many samples into the arrays of a batch, from zstd frames to rows.

It holds no GIL at all: passing the GIL between threads can take longer than decoding a sample.
"""

from typing import NamedTuple

import numpy as np

from teacher_cache.codec import rows as logits
from teacher_cache.codec import tokens
from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.rows import Layout, Rows, clear_rows, fill_rows
from teacher_cache.codec.sections import SIZE_BYTES
from teacher_cache.codec.tokens import fill_columns
from teacher_cache.codec.zstd import Decompressor, decompress_into
from teacher_cache.records import RowBatch

ADDRESS, BYTES, CONTENT_BYTES = range(3)  # fields of a frame: address, size, decompressed size
TOKENS, LOGITS = range(2)  # frames of each sample


class Columns(NamedTuple):
    """Token and logits arrays of a RowBatch."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    attention_mask: np.ndarray
    loss_mask: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    next_logprob: np.ndarray
    log_partition: np.ndarray

    @staticmethod
    def of(batch: RowBatch) -> "Columns":
        """View the arrays of a batch, without a copy."""
        return Columns(*(getattr(batch, name) for name in Columns._fields))


@compiled
def fill_samples(
    places_N3: np.ndarray,
    frames_N23: np.ndarray,
    zstd: Decompressor,
    content: np.ndarray,
    vocab_size: int,
    layout: Layout,
    columns: Columns,
    at: np.ndarray,
) -> None:
    """Decode N samples into their places in the batch.

    Args:
        places_N3: int64; row of the batch, first token, end of the tokens.
        frames_N23: int64; the tokens frame that training reads, and the logits frame. An empty one leaves padding.
        content: uint8, read-only to Python; buffer for decompressed frames, as large as the largest.
        at: int64 [2], output; index of the sample and of its frame being decoded, for error messages.

    Raises ValueError(what, value seen, value wanted) if a frame is invalid.
    """
    for i in range(len(places_N3)):
        at[0] = i
        row, start, stop = places_N3[i]
        if frames_N23[i, TOKENS, BYTES] == 0:
            fill_padding(columns, row, start, stop)
            continue
        at[1] = TOKENS
        part = _decompressed(frames_N23[i, TOKENS], zstd, content)
        input_ids, loss_mask = columns.input_ids[row, start:stop], columns.loss_mask[row, start:stop]
        fill_columns(part, _starts(part, tokens.N_SECTIONS), vocab_size, input_ids, loss_mask)
        columns.attention_mask[row, start:stop] = True
        for s in range(stop - start):
            columns.position_ids[row, start + s] = s
        at[1] = LOGITS
        rows = _rows(columns, row, start, stop)
        if frames_N23[i, LOGITS, BYTES] > 0:
            part = _decompressed(frames_N23[i, LOGITS], zstd, content)
            fill_rows(part, _starts(part, logits.N_SECTIONS), layout, rows)
        else:
            clear_rows(np.empty(0, np.int32), rows)


@compiled
def fill_padding(columns: Columns, row: int, start: int, stop: int) -> None:
    """Fill these tokens of a row with padding."""
    columns.input_ids[row, start:stop] = 0
    columns.position_ids[row, start:stop] = 0
    columns.attention_mask[row, start:stop] = False
    columns.loss_mask[row, start:stop] = False
    clear_rows(np.empty(0, np.int32), _rows(columns, row, start, stop))


@compiled
def _rows(columns: Columns, row: int, start: int, stop: int) -> Rows:
    return Rows(
        np.empty(stop - start, np.int32),
        columns.ids[row, start:stop],
        columns.logprobs[row, start:stop],
        columns.next_logprob[row, start:stop],
        columns.log_partition[row, start:stop],
    )


@compiled
def _decompressed(frame: np.ndarray, zstd: Decompressor, content: np.ndarray) -> np.ndarray:
    part = content[: frame[CONTENT_BYTES]]
    n = decompress_into(zstd.function, zstd.context, frame[ADDRESS], frame[BYTES], part)
    if n != len(part):
        raise ValueError("bytes in a broken zstd frame", n, len(part))
    return part


@compiled
def _starts(content: np.ndarray, n_sections: int) -> np.ndarray:
    """Offsets of the sections, as ``Sections.starts``: int64 [n_sections + 1]."""
    starts = np.empty(n_sections + 1, np.int64)
    starts[0] = SIZE_BYTES * n_sections
    for section in range(n_sections):
        size = np.int64(0)
        for byte in range(SIZE_BYTES):
            size |= np.int64(content[SIZE_BYTES * section + byte]) << (8 * byte)
        starts[section + 1] = starts[section] + size
    if starts[n_sections] != len(content):
        raise ValueError("end of sections", starts[n_sections], len(content))
    return starts
