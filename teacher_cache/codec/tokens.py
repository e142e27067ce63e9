"""The ``tokens`` signal as bytes: what a sequence is called, and two zstd frames of sections.

``frame``, all that training reads:

- ``input_ids``: u24.
- ``loss_mask``: the rows that count, see ``positions``.

``text_frame``:

- ``gaps``: bytes of the text between a token and the one before it, u32 (two's complement: tokens may overlap).
- ``lengths``: bytes of each token, u32.
- ``text``: UTF-8.

Integers are split into byte planes (``planes``).
"""

import numpy as np

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import MAX_SEQUENCE_TOKENS
from teacher_cache.codec.message import Row, RowReader, write_row
from teacher_cache.codec.planes import join_planes, split_planes
from teacher_cache.codec.positions import decode_bits, encode_positions, most_bytes
from teacher_cache.codec.sections import Sections, compress_sections
from teacher_cache.records import TokenSample

ID_BYTES, SPAN_BYTES = 3, 4
LEVEL = 3  # of zstd, for the text
MAX_TOKEN_BYTES, SLACK_BYTES = 1 << 10, 1 << 16  # of text, a token and a sequence: bounds what is decompressed

_READER = RowReader(TOKENS_SCHEMA)


def encode_tokens(sample: TokenSample) -> bytes:
    """The payload of one sequence's tokens member.

    Raises UserError when the text is longer than what a reader takes for that many tokens.
    """
    text = np.frombuffer(sample.text.encode(), np.uint8)
    start, end = sample.byte_start.astype(np.int64), sample.byte_end.astype(np.int64)
    if len(text) > SLACK_BYTES + MAX_TOKEN_BYTES * len(start):
        raise UserError(
            f"corpus: {sample.source_id}: {len(text)} bytes of text in {len(start)} tokens: the tokenizer does not "
            "know this text; leave the document out"
        )
    gaps = np.diff(start, prepend=0)
    gaps[1:] -= (end - start)[:-1]
    frame = [split_planes(sample.input_ids, ID_BYTES), encode_positions(np.flatnonzero(sample.loss_mask))]
    text_frame = [split_planes(gaps, SPAN_BYTES), split_planes(end - start, SPAN_BYTES), text[None]]
    return write_row(
        TOKENS_SCHEMA,
        {
            "key": sample.key,
            "source_id": sample.source_id,
            "layer": sample.layer,
            "frame": compress_sections(frame, LEVEL),
            "text_frame": compress_sections(text_frame, LEVEL),
        },
    )


def decode_tokens(payload: bytes, num_tokens: int | None, vocab_size: int) -> TokenSample:
    """Decode a payload of ``num_tokens`` tokens (None: not known).

    Raises CorruptCacheError on wrong lengths, ids outside the vocabulary, or byte spans outside the text.
    """
    row = _READER.read(payload)
    input_ids, loss_mask = _training_columns(row, num_tokens, vocab_size)
    limit = SLACK_BYTES + len(input_ids) * (2 * SPAN_BYTES + MAX_TOKEN_BYTES)
    sections = Sections(row.binary("text_frame"), 3, limit)
    gaps = sections.integers(0, input_ids.shape, SPAN_BYTES).view(np.int32).astype(np.int64)
    lengths = sections.integers(1, input_ids.shape, SPAN_BYTES).astype(np.int64)
    text = sections[2]
    end = np.cumsum(gaps + lengths)
    start = end - lengths
    if start.min() < 0 or end.max() > len(text):
        raise CorruptCacheError(f"a token's byte span begins before or ends beyond the text of {len(text)} bytes")
    return TokenSample(
        key=row.text("key"),
        source_id=row.text("source_id"),
        layer=row.text("layer"),
        text=_utf8(text),
        input_ids=input_ids,
        loss_mask=loss_mask,
        byte_start=start.astype(np.uint32),
        byte_end=end.astype(np.uint32),
    )


def decode_training_columns(payload: bytes, num_tokens: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Only ``input_ids`` uint32 [S] and ``loss_mask`` bool [S]: what a training batch needs. Raises as above."""
    return _training_columns(_READER.read(payload), num_tokens, vocab_size)


def _training_columns(row: Row, num_tokens: int | None, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    most = MAX_SEQUENCE_TOKENS if num_tokens is None else num_tokens
    sections = Sections(row.binary("frame"), 2, limit=most * ID_BYTES + most_bytes(most))
    planes = sections[0]
    n = len(planes) // ID_BYTES
    if len(planes) != n * ID_BYTES or n == 0 or n != (num_tokens or n):
        raise CorruptCacheError(f"{len(planes)} bytes of token ids, wanted {ID_BYTES} for each of {num_tokens} tokens")
    input_ids = join_planes(planes, ID_BYTES)
    if input_ids.max() >= vocab_size:
        raise CorruptCacheError(f"token id {input_ids.max()} is outside the vocabulary of {vocab_size}")
    loss_mask = decode_bits(sections[1], n)
    if loss_mask[-1]:
        raise CorruptCacheError("the last row is in the loss mask, though no token follows it")
    return input_ids, loss_mask


def _utf8(text: np.ndarray) -> str:
    try:
        return str(text.data, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCacheError(f"the text is not UTF-8: {error.reason}") from None
