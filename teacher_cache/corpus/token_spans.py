"""Byte spans of tokens in the text's UTF-8, exact even where one character is split over several tokens.

Tokenizers report character spans, which overlap inside a split character. So the bytes of each vocabulary entry are
tabulated once (byte-level BPE: GPT-2's byte alphabet; SentencePiece: ``▁`` and ``<0xE2>``), concatenated for each
document, and compared with the document's bytes. If they are equal, the spans are correct by construction. If not (for
instance, a normalizer rewrote the text), character spans are used, and the tokens of a split character share its span.
"""

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from teacher_cache.codec.compiled import compiled
from teacher_cache.token_table import TokenTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenSpans:
    """A tokenized text: token t covers ``data[start[t]:end[t]]``, both non-decreasing."""

    data: bytes  # the text's UTF-8
    ids: np.ndarray  # uint32 [S]
    start: np.ndarray  # int64 [S]
    end: np.ndarray  # int64 [S]


@dataclass(frozen=True)
class BatchSpans:
    """M tokenized texts of N tokens in total, their arrays concatenated."""

    data: list[bytes]
    tokens: np.ndarray  # int64 [M]
    ids: np.ndarray  # uint32 [N]
    start: np.ndarray  # int64 [N]
    end: np.ndarray  # int64 [N]

    @classmethod
    def of(cls, each: list[TokenSpans]) -> "BatchSpans":
        """Concatenate texts into a batch."""
        return cls(
            [spans.data for spans in each],
            np.array([len(spans.ids) for spans in each], np.int64),
            np.concatenate([spans.ids for spans in each]),
            np.concatenate([spans.start for spans in each]),
            np.concatenate([spans.end for spans in each]),
        )

    def each(self) -> list[TokenSpans]:
        """The texts one by one."""
        stops = np.cumsum(self.tokens)
        return [
            TokenSpans(data, self.ids[first:stop], self.start[first:stop], self.end[first:stop])
            for data, first, stop in zip(self.data, (stops - self.tokens).tolist(), stops.tolist(), strict=True)
        ]


class ByteTokenizer:
    """Tokenizes batches of texts, without adding special tokens, and computes each token's byte span."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.table = vocabulary_table(tokenizer)

    def encode(self, texts: list[str]) -> list[TokenSpans]:
        """Tokenize ``texts``, which must not contain lone surrogates."""
        return self.encode_batch(texts).each() if texts else []

    def encode_batch(self, texts: list[str]) -> "BatchSpans":
        """``encode`` of at least one text, with the arrays left concatenated."""
        data = [text.encode("utf-8") for text in texts]
        ids = self._ids(texts)
        tokens_M = np.fromiter(map(len, ids), np.int64, len(ids))
        ids_N = np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(tokens_M.sum()))
        start_N, end_N, fits_M = _spans_by_bytes(
            ids_N,
            tokens_M,
            self.table,
            np.frombuffer(b"".join(data), np.uint8),
            np.fromiter(map(len, data), np.int64, len(data)),
        )
        batch = BatchSpans(data, tokens_M, ids_N, start_N, end_N)
        if fits_M.all():
            return batch
        return BatchSpans.of(
            [
                found if fits else self._spans_by_characters(text, found.data)
                for found, fits, text in zip(batch.each(), fits_M.tolist(), texts, strict=True)
            ]
        )

    def spell(self, ids: np.ndarray) -> TokenSpans:
        """The bytes of ids (integer [S]), none for unknown ids; the concatenation may be invalid UTF-8."""
        bytes_B, begin_V, length_V = self.table
        known = ids < len(length_V)
        lengths = np.where(known, length_V[np.where(known, ids, 0)], 0)
        end = np.cumsum(lengths)
        where_from = np.arange(int(end[-1]) if len(end) else 0)
        where_from += np.repeat(begin_V[np.where(known, ids, 0)] - (end - lengths), lengths)
        return TokenSpans(bytes_B[where_from].tobytes(), ids.astype(np.uint32), end - lengths, end)

    def locate(self, ids: np.ndarray, beginning: str) -> TokenSpans:
        """The text that given ids (integer [S]) spell, and their byte spans in it; nothing is tokenized.

        beginning: what a text was that its first tokens were made from, without the space that some tokenizers put
        before it. The text may be invalid UTF-8.
        """
        spelled = self.spell(ids)
        if not spelled.data.startswith(b" ") or beginning.startswith(" "):
            return spelled
        return TokenSpans(
            spelled.data[1:], spelled.ids, np.maximum(spelled.start - 1, 0), np.maximum(spelled.end - 1, 0)
        )

    def _spans_by_characters(self, text: str, data: bytes) -> TokenSpans:
        encoded = self.tokenizer(
            text, add_special_tokens=False, padding=False, truncation=False, return_offsets_mapping=True, verbose=False
        )
        spans = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        widths = 1 + (codes >= 0x80) + (codes >= 0x800).astype(np.int64) + (codes >= 0x10000)
        byte_of_character = np.concatenate([[0], np.cumsum(widths)])
        start, end = np.maximum.accumulate(byte_of_character[spans], axis=0).T
        return TokenSpans(data, np.array(encoded["input_ids"], dtype=np.uint32), start, end)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids, straight from the backend: the transformers wrapper would double the time."""
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@compiled
def _spans_by_bytes(
    ids_N: np.ndarray,
    tokens_M: np.ndarray,
    vocabulary: TokenTable,
    text_B: np.ndarray,
    bytes_M: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte spans of the tokens of M texts, int64 [N] each, and whether a text's bytes match its ids, bool [M].

    Spans of a text that does not match are undefined.
    """
    spelled_B, begins_V, lengths_V = vocabulary
    start_N, end_N = np.zeros(len(ids_N), np.int64), np.zeros(len(ids_N), np.int64)
    fits_M = np.zeros(len(tokens_M), np.bool_)
    first = text_begin = 0
    for i in range(len(tokens_M)):
        stop, size = first + tokens_M[i], bytes_M[i]
        spelled = 0
        known = True
        for t in range(first, stop):
            known &= ids_N[t] < len(lengths_V)
            spelled += lengths_V[ids_N[t]] if known else 0
        extra = spelled - size  # SentencePiece prepends one space to the text
        fits = known and 0 <= extra <= 1
        at = -extra
        for t in range(first, stop):
            if not fits:
                break
            begin, width = begins_V[ids_N[t]], lengths_V[ids_N[t]]
            for byte in range(max(0, -at), width):
                fits &= spelled_B[begin + byte] == text_B[text_begin + at + byte]
            start_N[t], end_N[t] = max(0, at), max(0, at + width)
            at += width
        fits_M[i] = fits
        first, text_begin = stop, text_begin + size
    return start_N, end_N, fits_M


def added_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Ids of the special tokens that ``tokenizer`` adds before (BOS) and after (EOS) a text; often none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def cut(spans: TokenSpans, size: int) -> list[tuple[int, int]]:
    """Split into consecutive pieces ``[begin, stop)`` of at most ``size`` tokens, at character boundaries only.

    A piece ends at the last token boundary within ``size`` tokens that does not split a character. A single character
    of more than ``size`` tokens becomes a longer piece, which the caller drops.
    """
    data = np.frombuffer(spans.data + b"\0", dtype=np.uint8)
    at = spans.start[1:]
    between = (spans.end[:-1] <= at) & (data[at] & 0xC0 != 0x80)
    borders = np.concatenate([np.flatnonzero(between) + 1, [len(spans.ids)]])
    pieces = []
    begin = 0
    while begin < len(spans.ids):
        first = np.searchsorted(borders, begin, side="right")
        last = np.searchsorted(borders, begin + size, side="right") - 1
        stop = int(borders[max(first, last)])
        pieces.append((begin, stop))
        begin = stop
    return pieces


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The ids of added tokens that stand for no text."""
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def vocabulary_table(tokenizer: "PreTrainedTokenizerBase") -> TokenTable:
    """The bytes of each token id: a guess that ``ByteTokenizer`` verifies against every text."""
    vocabulary = tokenizer.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)
    decoder = repr(tokenizer.backend_tokenizer.decoder)
    to_bytes = _byte_level if "ByteLevel" in decoder else _sentencepiece
    for token, index in vocabulary.items():
        table[index] = to_bytes(token)
    for index, added in tokenizer.added_tokens_decoder.items():
        table[index] = added.content.encode("utf-8", "replace")
    return TokenTable.of(table)


def never_read(tokenizer: "PreTrainedTokenizerBase", table: TokenTable) -> list[int]:
    """Ids that text does not become, because another token has the same bytes.

    Added tokens are found first, and byte tokens (``<0x41>``) stand in for what the vocabulary lacks.
    """
    added = tokenizer.added_tokens_decoder
    ranked = sorted(
        (index not in added, _BYTE_TOKEN.fullmatch(token) is not None, index)
        for token, index in tokenizer.get_vocab().items()
    )
    seen: set[bytes] = set()
    never = []
    for _, _, index in ranked:
        spelled = table.token(index)
        if spelled in seen:
            never.append(index)
        elif spelled:
            seen.add(spelled)
    return never


def _byte_alphabet() -> dict[int, int]:
    """Inverse of GPT-2's ``bytes_to_unicode`` (encoder.py): code point to byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + n: byte for n, byte in enumerate(others)}


_BYTE_OF_STAND_IN = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTE_OF_STAND_IN).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", "replace")


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8", "replace")
