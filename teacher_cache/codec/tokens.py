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
from teacher_cache.codec.compiled import compiled, refused_as_corrupt
from teacher_cache.codec.message import RowReader, write_row
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.positions import encode_positions, most_bytes, row_numbers
from teacher_cache.codec.sections import Frame, Sections, compress_sections
from teacher_cache.records import TokenSample

ID_BYTES, SPAN_BYTES = 3, 4
N_SECTIONS = 2  # of what training reads
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
    most_tokens = MAX_SEQUENCE_TOKENS if num_tokens is None else num_tokens
    sections = Sections(row.binary("frame"), N_SECTIONS, training_bytes(most_tokens))
    n = len(sections[0]) // ID_BYTES if num_tokens is None else num_tokens
    input_ids, loss_mask = np.empty(n, np.uint32), np.empty(n, np.bool_)
    with refused_as_corrupt():
        fill_columns(sections.content, sections.starts, vocab_size, input_ids, loss_mask)
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


def training_frame(payload: bytes, num_tokens: int) -> Frame:
    """The frame of a payload that training reads. Raises CorruptCacheError."""
    return Frame.of(_READER.read(payload).binary("frame"), N_SECTIONS, training_bytes(num_tokens))


def training_bytes(num_tokens: int) -> int:
    """What its sections may take, at most."""
    return ID_BYTES * num_tokens + most_bytes(num_tokens)


@compiled
def fill_columns(
    content: np.ndarray, starts: np.ndarray, vocab_size: int, input_ids_S: np.ndarray, loss_mask_S: np.ndarray
) -> None:
    """Decode the sections of that frame (see ``fill_ids``) into arrays of integers and of bool.

    Raises ValueError(what, value seen, value wanted) when they do not fit.
    """
    n = len(input_ids_S)
    planes = content[starts[0] : starts[1]]
    if len(planes) != ID_BYTES * n or n == 0:
        raise ValueError("bytes of token ids", len(planes), ID_BYTES * max(n, 1))
    largest = np.uint32(0)
    for s in range(n):
        token = np.uint32(planes[s]) | np.uint32(planes[n + s]) << 8 | np.uint32(planes[2 * n + s]) << 16
        largest = max(largest, token)
        input_ids_S[s] = token
    if largest >= vocab_size:
        raise ValueError("largest token id", np.int64(largest), vocab_size - 1)
    loss_mask_S[:] = False
    for s in row_numbers(content[starts[1] : starts[2]], n):
        loss_mask_S[s] = True
    if loss_mask_S[n - 1]:
        raise ValueError("last row in the loss mask, though no token follows it", n - 1, n - 2)


def _utf8(text: np.ndarray) -> str:
    try:
        return str(text.data, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCacheError(f"the text is not UTF-8: {error.reason}") from None
