"""The loop that decodes many samples into the arrays of a batch: from frames to rows, without Python in between.

What a thread does in Python excludes all others, and handing over to one of them can take longer than decoding does.
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

ADDRESS, BYTES, CONTENT_BYTES = range(3)  # of a frame: where it is, its size, and the size of what it holds
TOKENS, LOGITS = range(2)  # frames of a sample


class Columns(NamedTuple):
    """A RowBatch's arrays of tokens and logits."""

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
        """Of this batch, not copied."""
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
    """Decode N samples, each into its place.

    Args:
        places_N3: int64; row of the batch, first token, and the one after the last.
        frames_N23: int64; of the tokens that training reads, and of the logits. Empty ones leave padding there.
        content: uint8, read-only; as large as the largest frame's content. Frames are decompressed into it.
        at: int64 [2]; which sample and which of its frames is being decoded: to be named after an error.

    Raises ValueError(what, value seen, value wanted) when a frame does not hold what it should.
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
    """Write the padding values to these tokens of a row."""
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
    """As those of ``Sections``, int64 [n_sections + 1]."""
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
