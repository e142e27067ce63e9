"""The bytes of every token: exact spans in the text's UTF-8, also where one character is split over tokens.

Tokenizers report character spans, which overlap inside a split character. So the bytes of each vocabulary entry are
tabulated once (byte-level BPE: GPT-2's byte alphabet; SentencePiece: ``▁`` and ``<0xE2>``), concatenated for each
document, and compared with the document's bytes. If they are equal the spans are right by construction. If not (a
normaliser rewrote the text, say) the character spans are used, and a split character's tokens share its whole span.
"""

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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


class ByteTokenizer:
    """Tokenizes batches of texts (no special tokens added) and gives every token its byte span."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        token_bytes = _vocabulary_bytes(tokenizer)
        lengths = np.array([len(token) for token in token_bytes], dtype=np.int64)
        self._blob = np.frombuffer(b"".join(token_bytes), dtype=np.uint8)
        self._lengths = lengths
        self._begins = np.cumsum(lengths) - lengths

    def encode(self, texts: list[str]) -> list[TokenSpans]:
        """Tokenize ``texts``; the texts must hold no lone surrogates."""
        if not texts:
            return []
        data = [text.encode("utf-8") for text in texts]
        by_bytes = self._spans_by_bytes(data, self._ids(texts))
        return [
            found or self._spans_by_characters(text, one)
            for found, text, one in zip(by_bytes, texts, data, strict=True)
        ]

    def spell(self, ids: np.ndarray) -> TokenSpans:
        """The bytes that ids (integer [S]) stand for, of unknown ones none; together they need not be UTF-8."""
        known = ids < len(self._lengths)
        lengths = np.where(known, self._lengths[np.where(known, ids, 0)], 0)
        end = np.cumsum(lengths)
        where_from = np.arange(int(end[-1]) if len(end) else 0)
        where_from += np.repeat(self._begins[np.where(known, ids, 0)] - (end - lengths), lengths)
        return TokenSpans(self._blob[where_from].tobytes(), ids.astype(np.uint32), end - lengths, end)

    def _spans_by_bytes(self, data: list[bytes], ids: list[list[int]]) -> list[TokenSpans | None]:
        """Of each text whose bytes are those that its ids stand for; None for the others. All texts in one pass."""
        tokens_M = np.fromiter(map(len, ids), np.int64, len(ids))
        ids_N = np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(tokens_M.sum()))
        widths_N = self._lengths[ids_N]
        ends_N = np.cumsum(widths_N)
        stops_M = np.cumsum(tokens_M)
        bounds_M = np.concatenate([[0], np.concatenate([[0], ends_N])[stops_M]])  # of each text's bytes, as spelled
        sizes_M = np.diff(bounds_M)
        extra_M = sizes_M - np.fromiter(map(len, data), np.int64, len(data))
        where_from = np.repeat(self._begins[ids_N] - (ends_N - widths_N), widths_N)
        where_from += np.arange(len(where_from))
        fits_M = (extra_M == 0) | (extra_M == 1)  # SentencePiece puts one space in front of the text
        wanted = b"".join(
            bytes(extra) + one if fits else bytes(size)
            for one, fits, extra, size in zip(data, fits_M.tolist(), extra_M.tolist(), sizes_M.tolist(), strict=True)
        )
        differs_B = self._blob[where_from] != np.frombuffer(wanted, np.uint8)
        differs_B[bounds_M[:-1][fits_M & (extra_M == 1)]] = False
        before_B = np.concatenate([[0], np.cumsum(differs_B)])
        fits_M &= before_B[bounds_M[1:]] == before_B[bounds_M[:-1]]
        ends_N -= np.repeat(bounds_M[:-1] + extra_M, tokens_M)
        starts_N = np.maximum(ends_N - widths_N, 0)
        return [
            TokenSpans(one, ids_N[first:stop], starts_N[first:stop], ends_N[first:stop]) if fits else None
            for one, fits, first, stop in zip(
                data, fits_M.tolist(), (stops_M - tokens_M).tolist(), stops_M.tolist(), strict=True
            )
        ]

    def _spans_by_characters(self, text: str, data: bytes) -> TokenSpans:
        encoded = self._tokenizer(
            text, add_special_tokens=False, padding=False, truncation=False, return_offsets_mapping=True, verbose=False
        )
        spans = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        widths = 1 + (codes >= 0x80) + (codes >= 0x800).astype(np.int64) + (codes >= 0x10000)
        byte_of_character = np.concatenate([[0], np.cumsum(widths)])
        start, end = np.maximum.accumulate(byte_of_character[spans], axis=0).T
        return TokenSpans(data, np.array(encoded["input_ids"], dtype=np.uint32), start, end)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """The tokenizer's ids, by way of its backend: the wrapper around it takes as long as it does."""
        backend = self._tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def added_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids of the special tokens that ``tokenizer`` puts before a text (BOS), and after it (EOS); often none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def cut(spans: TokenSpans, size: int) -> list[tuple[int, int]]:
    """Cut into consecutive pieces ``[begin, stop)`` of at most ``size`` tokens, between characters only.

    A piece ends at the last token border, at most ``size`` tokens on, where no character is split. A single
    character of more than ``size`` tokens is a piece longer than ``size``: the caller drops it.
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


def _vocabulary_bytes(tokenizer: "PreTrainedTokenizerBase") -> list[bytes]:
    """The bytes each token id stands for; a guess that ``ByteTokenizer`` checks against every text."""
    vocabulary = tokenizer.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)
    decoder = repr(tokenizer.backend_tokenizer.decoder)
    to_bytes = _byte_level if "ByteLevel" in decoder else _sentencepiece
    for token, index in vocabulary.items():
        table[index] = to_bytes(token)
    for index, added in tokenizer.added_tokens_decoder.items():
        table[index] = added.content.encode("utf-8", "replace")
    return table


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's printable stand-in of each byte (``bytes_to_unicode`` in its encoder.py), inverted."""
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
