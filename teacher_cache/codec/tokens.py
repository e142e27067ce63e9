"""The ``tokens`` signal as bytes: the sample's names and two zstd frames of sections.

``frame``, the only part that training reads:

- ``input_ids``: u24.
- ``loss_mask``: rows in the loss, see ``positions``.

``text_frame``:

- ``gaps``: bytes of text between the previous token's end and a token's start, u32 (two's complement: tokens may
  overlap).
- ``lengths``: bytes of text of each token, u32.
- ``text``: UTF-8.

Format 1.2: in samples of chats a third frame follows in ``text_frame``, the JSON of their ChatRecord.

Integers are split into byte planes (``planes``).

In a bundle (``bundles``) a sample is a record instead of an Arrow row: the size of ``frame``, u32, then ``frame``, then
``text_frame`` with three more sections, the strings ``key``, ``source_id`` and ``layer``.
"""

import numpy as np
import zstandard

from schemas.arrow import TOKENS_SCHEMA
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import MAX_SEQUENCE_TOKENS
from teacher_cache.codec.compiled import compiled, refused_as_corrupt
from teacher_cache.codec.message import RowReader, is_arrow, write_row
from teacher_cache.codec.planes import decompress, split_planes
from teacher_cache.codec.positions import encode_positions, most_bytes, row_numbers
from teacher_cache.codec.sections import SIZE_BYTES, Frame, Sections, compress_sections
from teacher_cache.codec.zstd import frame_size
from teacher_cache.records import TokenSample

ID_BYTES, SPAN_BYTES = 3, 4
N_SECTIONS = 2  # in the frame that training reads
LEVEL = 3  # of zstd, for the text
TEXT_SECTIONS = 3  # gaps, lengths, text; in a record the strings follow
STRINGS = ("key", "source_id", "layer")
MAX_CHAT_BYTES = 1 << 24  # of a chat's record
MAX_TOKEN_BYTES, SLACK_BYTES = 1 << 10, 1 << 16  # of text, per token and per sequence: bounds what is decompressed

_READER = RowReader(TOKENS_SCHEMA)


def encode_tokens(sample: TokenSample) -> bytes:
    """Encode the payload of one sequence.

    Raises UserError if the text is longer than readers accept for that many tokens.
    """
    text = np.frombuffer(sample.text.encode(), np.uint8)
    start, end = sample.byte_start.astype(np.int64), sample.byte_end.astype(np.int64)
    check_text(sample.source_id, len(sample.input_ids), len(text))
    gaps = np.diff(start, prepend=0)
    gaps[1:] -= (end - start)[:-1]
    frame = [split_planes(sample.input_ids, ID_BYTES), encode_positions(np.flatnonzero(sample.loss_mask))]
    text_frame = [split_planes(gaps, SPAN_BYTES), split_planes(end - start, SPAN_BYTES), text[None]]
    return write_row(
        TOKENS_SCHEMA,
        {
            **{name: getattr(sample, name) for name in STRINGS},
            "frame": compress_sections(frame, LEVEL),
            "text_frame": compress_sections(text_frame, LEVEL) + chat_frame(sample.chat),
        },
    )


def chat_frame(chat: bytes) -> bytes:
    """The frame of a chat's record; nothing where there is none."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(chat) if chat else b""


def check_text(source_id: str, num_tokens: int, text_bytes: int) -> None:
    """Raise UserError if a sequence's text is longer than readers accept for that many tokens."""
    if text_bytes > SLACK_BYTES + MAX_TOKEN_BYTES * num_tokens:
        raise UserError(
            f"corpus: {source_id}: {text_bytes} bytes of text in {num_tokens} tokens: the tokenizer "
            "does not know this text; leave the document out"
        )


def decode_tokens(payload: bytes, num_tokens: int | None, vocab_size: int) -> TokenSample:
    """Decode a payload or record of ``num_tokens`` tokens (None: unknown).

    Raises CorruptCacheError on wrong lengths, ids outside the vocabulary, or byte spans outside the text.
    """
    most_tokens = MAX_SEQUENCE_TOKENS if num_tokens is None else num_tokens
    sections = Sections(_frame(payload), N_SECTIONS, training_bytes(most_tokens))
    n = len(sections[0]) // ID_BYTES if num_tokens is None else num_tokens
    input_ids, loss_mask = np.empty(n, np.uint32), np.empty(n, np.bool_)
    with refused_as_corrupt():
        fill_columns(sections.content, sections.starts, vocab_size, input_ids, loss_mask)
    limit = SLACK_BYTES + len(input_ids) * (2 * SPAN_BYTES + MAX_TOKEN_BYTES)
    sections, strings, chat = text_sections(payload, limit)
    gaps = sections.integers(0, input_ids.shape, SPAN_BYTES).view(np.int32).astype(np.int64)
    lengths = sections.integers(1, input_ids.shape, SPAN_BYTES).astype(np.int64)
    text = sections[2]
    end = np.cumsum(gaps + lengths)
    start = end - lengths
    if start.min() < 0 or end.max() > len(text):
        raise CorruptCacheError(f"a token's byte span begins before or ends beyond the text of {len(text)} bytes")
    return TokenSample(
        **strings,
        text=_utf8(text),
        input_ids=input_ids,
        loss_mask=loss_mask,
        byte_start=start.astype(np.uint32),
        byte_end=end.astype(np.uint32),
        chat=chat,
    )


def training_frame(payload: bytes, num_tokens: int) -> Frame:
    """Frame that training reads, of a payload or record. Raises CorruptCacheError."""
    return Frame.of(_frame(payload), N_SECTIONS, training_bytes(num_tokens))


def training_bytes(num_tokens: int) -> int:
    """Upper bound of the bytes of its sections."""
    return ID_BYTES * num_tokens + most_bytes(num_tokens)


def _frame(payload: bytes) -> memoryview:
    return _READER.read(payload).binary("frame") if is_arrow(payload) else record_frames(payload)[0]


def record_frames(record: bytes) -> tuple[memoryview, memoryview]:
    """Both frames of a record. Raises CorruptCacheError."""
    size = int.from_bytes(record[:SIZE_BYTES], "little")
    if len(record) < SIZE_BYTES + size:
        raise CorruptCacheError(
            f"a record of {len(record)} bytes, wanted at least {SIZE_BYTES + size} for its first frame"
        )
    frames = memoryview(record)[SIZE_BYTES:]
    return frames[:size], frames[size:]


def text_sections(payload: bytes, limit: int) -> tuple[Sections, dict[str, str], bytes]:
    """Sections of the text frame, of at most ``limit`` bytes, the sample's names, and the JSON of its chat.

    Raises CorruptCacheError.
    """
    if is_arrow(payload):
        row = _READER.read(payload)
        text_frame, chat = split_text_frame(row.binary("text_frame"))
        return Sections(text_frame, TEXT_SECTIONS, limit), {name: row.text(name) for name in STRINGS}, _chat(chat)
    text_frame, chat = split_text_frame(record_frames(payload)[1])
    sections = Sections(text_frame, TEXT_SECTIONS + len(STRINGS), limit)
    return sections, {name: _utf8(sections[TEXT_SECTIONS + i]) for i, name in enumerate(STRINGS)}, _chat(chat)


def split_text_frame(data: memoryview) -> tuple[memoryview, memoryview]:
    """The frame of the text, and that of the chat's record, which may be empty. Raises CorruptCacheError."""
    size = frame_size(data)
    return data[:size], data[size:]


def _chat(frame: memoryview) -> bytes:
    return bytes(decompress(frame, most=MAX_CHAT_BYTES, least=1)) if frame else b""


@compiled
def fill_columns(
    content: np.ndarray, starts: np.ndarray, vocab_size: int, input_ids_S: np.ndarray, loss_mask_S: np.ndarray
) -> None:
    """Decode the sections of the training frame (see ``fill_ids``) into integer ids and a bool mask.

    Raises ValueError(what, value seen, value wanted) if they are invalid.
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
        raise ValueError("last row of the loss mask, which no token follows", n - 1, n - 2)


def _utf8(text: np.ndarray) -> str:
    try:
        return str(text.data, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCacheError(f"the text is not UTF-8: {error.reason}") from None
