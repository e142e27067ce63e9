"""The ``tokens`` signal of short sequences as records of a bundle (see ``bundles``; content: ``tokens``).

One compiled pass lays out many records; what remains per record is to compress its two frames.
"""

import struct
import threading
from collections.abc import Iterator

import numpy as np
import zstandard

from schemas.arrow import TOKENS_SCHEMA
from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.message import RowReader
from teacher_cache.codec.planes import MOST_BYTES
from teacher_cache.codec.sections import SIZE_BYTES, Sections
from teacher_cache.codec.tokens import (
    ID_BYTES,
    LEVEL,
    MAX_TOKEN_BYTES,
    N_SECTIONS,
    SLACK_BYTES,
    SPAN_BYTES,
    STRINGS,
    TEXT_SECTIONS,
    chat_frame,
    check_text,
    split_text_frame,
)
from teacher_cache.token_batch import TokenBatch

_READER = RowReader(TOKENS_SCHEMA)
_SIZE = struct.Struct("<I")
_THREAD = threading.local()


def encode_records(batch: TokenBatch) -> Iterator[bytes]:
    """Encode short sequences as records, in order. Raises UserError like ``encode_tokens``."""
    strings = [[string.encode() for string in each] for each in (batch.keys, batch.source_ids, batch.layers)]
    text_M, *string_bytes = (np.fromiter(map(len, each), np.int64, len(batch)) for each in (batch.texts, *strings))
    for i in np.flatnonzero(text_M > SLACK_BYTES + MAX_TOKEN_BYTES * batch.num_tokens)[:1].tolist():
        check_text(batch.source_ids[i], int(batch.num_tokens[i]), int(text_M[i]))
    content, starts_M3 = _record_contents(
        batch.input_ids,
        batch.loss_mask,
        batch.byte_start,
        batch.byte_end,
        batch.num_tokens,
        text_M,
        np.stack(string_bytes, axis=1),
    )
    compress, view = _compressor().compress, content.data
    for (frame, text_frame, end), chat, *ending in zip(
        starts_M3.tolist(), batch.chats, batch.texts, *strings, strict=True
    ):
        first, second = compress(view[frame:text_frame]), compress(b"".join((view[text_frame:end], *ending)))
        yield b"".join((_SIZE.pack(len(first)), first, second, chat_frame(chat)))


def to_record(payload: bytes) -> bytes:
    """Convert a member's payload to a record. Raises CorruptCacheError."""
    row = _READER.read(payload)
    text_frame, chat = split_text_frame(row.binary("text_frame"))
    sections = Sections(text_frame, TEXT_SECTIONS, MOST_BYTES)
    strings = [row.binary(name) for name in STRINGS]
    sizes = np.diff(sections.starts).tolist() + [len(string) for string in strings]
    content = b"".join((struct.pack(f"<{len(sizes)}I", *sizes), sections.content[sections.starts[0] :].data, *strings))
    frame = row.binary("frame")
    return b"".join((_SIZE.pack(len(frame)), frame, _compressor().compress(content), chat))


def _compressor() -> zstandard.ZstdCompressor:
    """Compressor of this thread: creating one takes longer than compressing a record."""
    if not hasattr(_THREAD, "compressor"):
        _THREAD.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    return _THREAD.compressor


@compiled
def _record_contents(
    ids_N: np.ndarray,
    loss_mask_N: np.ndarray,
    byte_start_N: np.ndarray,
    byte_end_N: np.ndarray,
    lengths_M: np.ndarray,
    text_M: np.ndarray,
    strings_M3: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Content of both frames of M records, uint8, without the text and the strings, which end the second frame.

    Also returns the start of each frame and the end of the second one's part, int64 [M, 3].
    """
    n_samples = len(lengths_M)
    starts_M3 = np.empty((n_samples, 3), np.int64)
    header, text_header = SIZE_BYTES * N_SECTIONS, SIZE_BYTES * (TEXT_SECTIONS + 3)
    content = np.zeros(n_samples * (header + text_header + 1) + len(ids_N) * (ID_BYTES + 1 + 2 * SPAN_BYTES), np.uint8)
    at = first = 0
    for i in range(n_samples):
        n = lengths_M[i]
        starts_M3[i, 0] = at
        planes, bits = at + header, at + header + ID_BYTES * n
        n_bits = 0
        before = np.int64(0)
        for s in range(n):
            if loss_mask_N[first + s]:
                n_bits = s + 1
        mask_bytes = (n_bits + 7) // 8
        gaps = bits + mask_bytes + text_header
        lengths = gaps + SPAN_BYTES * n
        for s in range(n):
            token = ids_N[first + s]
            for plane in range(ID_BYTES):
                content[planes + plane * n + s] = (token >> (8 * plane)) & 255
            if loss_mask_N[first + s]:
                content[bits + (s >> 3)] |= 1 << (s & 7)
            start, end = np.int64(byte_start_N[first + s]), np.int64(byte_end_N[first + s])
            for plane in range(SPAN_BYTES):
                content[gaps + plane * n + s] = ((start - before) >> (8 * plane)) & 255
                content[lengths + plane * n + s] = ((end - start) >> (8 * plane)) & 255
            before = end
        _put_size(content, at, ID_BYTES * n)
        _put_size(content, at + SIZE_BYTES, mask_bytes)
        at = bits + mask_bytes
        starts_M3[i, 1] = at
        _put_size(content, at, SPAN_BYTES * n)
        _put_size(content, at + SIZE_BYTES, SPAN_BYTES * n)
        _put_size(content, at + 2 * SIZE_BYTES, text_M[i])
        for string in range(3):
            _put_size(content, at + (TEXT_SECTIONS + string) * SIZE_BYTES, strings_M3[i, string])
        at = lengths + SPAN_BYTES * n
        starts_M3[i, 2] = at
        first += n
    return content, starts_M3


@compiled
def _put_size(content: np.ndarray, at: int, size: int) -> None:
    for byte in range(SIZE_BYTES):
        content[at + byte] = (size >> (8 * byte)) & 255
