"""Chats from their rendering: the text is cut into messages, which are rendered again to prove that they are right.

What counts is the proof: the chat template must make the same text of the messages, the tokenizer the same tokens of
the text, and the same tokens must be learned. A chat that was cut at ``max_tokens`` is the beginning of such a text.
Messages that give the same rendering cannot be told apart: a system message that the template would have written itself
counts as the template's, calls of tools are refused, and a reasoning that the template takes out of a message's content
may come back as a field of its own.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schemas.cache_config import CorpusConfig
from schemas.chat_record import ChatRecord
from teacher_cache.corpus.chat import ChatRenderer, RenderedChat, template_source
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.mask import ReplyMask, in_bytes
from teacher_cache.corpus.said import cut_record
from teacher_cache.corpus.token_spans import ByteTokenizer, TokenSpans, special_ids
from teacher_cache.records import TokenSample
from tools.making.turn_marks import Said, TurnMarks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_READINGS = 32  # of one text
_MORE = "\U0010efff"  # private use area; stands for what was cut off


class Outcome(StrEnum):
    """What came of a sample."""

    PLAIN = "no chat"
    PROVEN = "a chat, proven by rendering it again"
    FORM = "not made of this chat template's turns"
    MARKUP = "special tokens inside of a message"
    TOOLS = "definitions or calls of tools, which a text does not give back"
    REFUSED = "the chat template refuses the messages, or leaves one out"
    TEXT = "rendered again, the text is another one"
    TOKENS = "tokenised again, the tokens are others"
    MASK = "rendered again, other tokens are learned"


FAILED = tuple(outcome for outcome in Outcome if outcome not in (Outcome.PLAIN, Outcome.PROVEN))


class Piece(NamedTuple):
    """One text of a message and where it lies, in bytes."""

    said: Said
    opens: bool
    start: int
    end: int


class Reading(NamedTuple):
    """A text as the texts of messages. ``cut``: it ends inside the last message, or inside what follows it."""

    pieces: list[Piece]
    cut: bool
    following: Said | None = None  # of a next message, of which the text holds nothing


class Unrenderer:
    """Finds the messages of rendered chats, with a teacher's tokenizer and chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", corpus: CorpusConfig) -> None:
        """``corpus``: the settings with which the chats were rendered. Raises UserError for an unusable template."""
        source = template_source(tokenizer, corpus.chat_template)
        self._renderer = ChatRenderer(tokenizer, corpus)
        self._marks = TurnMarks(self._renderer, source) if source else None
        self._reply_mask = ReplyMask(tokenizer)
        self._tokenizer = ByteTokenizer(tokenizer)
        self._special = np.array(sorted(special_ids(tokenizer)), np.uint32)

    def read(self, sample: TokenSample) -> tuple[ChatRecord | None, Outcome]:
        """The record of a chat; one without messages if they cannot be proven; None for a sample that is no chat."""
        if sample.loss_mask[:-1].all():  # of a chat, the first header at least is not learned
            return None, Outcome.PLAIN
        text = sample.text.encode()
        special_S = np.isin(sample.input_ids, self._special) & (sample.byte_start < sample.byte_end)
        failure = Outcome.FORM
        marks = set() if self._marks is None else self._marks.of_turns
        is_chat = bool(special_S.any()) or any(mark in text for mark in marks)
        for reading in self._readings(text):
            is_chat = is_chat or len(reading.pieces) > 1
            record, outcome = self._proven(sample, text, reading, special_S)
            if record is not None:
                return record, outcome
            failure = outcome if failure is Outcome.FORM else failure
        return (ChatRecord(messages=[]), failure) if is_chat else (None, Outcome.PLAIN)

    def _readings(self, text: bytes) -> Iterator[Reading]:
        """How the text may be made of messages, likelier ones first."""
        starts = [] if self._marks is None else self._marks.after.get(None, [])
        found = (each for mark in starts if text.startswith(mark.literal) for each in self._from(text, mark))
        for _, reading in zip(range(MOST_READINGS), found, strict=False):
            yield reading

    def _from(self, text: bytes, mark: Any) -> Iterator[Reading]:
        assert self._marks is not None
        pieces: list[Piece] = []
        at = len(mark.literal)
        while mark.said is not None:
            found = self._marks.next(mark.said, text, at)
            if found is None:
                yield from self._cut(text, [*pieces, Piece(mark.said, mark.opens, at, len(text))])
                return
            end, following = found
            pieces.append(Piece(mark.said, mark.opens, at, end))
            mark, at = following, end + len(following.literal)
        readings = [Reading(pieces, cut=False), *self._cut(text, [*pieces[:-1], pieces[-1]._replace(end=len(text))])]
        if pieces[-1].start == len(text):  # rather cut after a header than an empty message
            readings.append(readings.pop(0))
        yield from readings

    def _cut(self, text: bytes, pieces: list[Piece]) -> Iterator[Reading]:
        """The text ends inside a mark (the longest one first), or inside the last piece."""
        assert self._marks is not None
        *whole, last = pieces
        if whole:  # the last piece may belong to a longer mark than the one before it
            rest = text[whole[-1].end :]
            marks = self._marks.after.get(whole[-1].said, [])
            for following in {mark.said: None for mark in marks if mark.literal[:-1].startswith(rest) and mark.opens}:
                yield Reading(whole, cut=True, following=following)
        endings = {
            (size, mark.said if mark.opens else None): None
            for mark in self._marks.after.get(last.said, [])
            for size in range(1, min(len(mark.literal), last.end - last.start + 1))
            if text.endswith(mark.literal[:size])
        }
        for size, following in sorted(endings, key=lambda ending: -ending[0]):
            yield Reading([*whole, last._replace(end=last.end - size)], cut=True, following=following)
        yield Reading(pieces, cut=True)
        yield Reading(pieces, cut=True, following=Said("user", "content"))  # templates may write last replies otherwise

    def _proven(
        self, sample: TokenSample, text: bytes, reading: Reading, special_S: np.ndarray
    ) -> tuple[ChatRecord | None, Outcome]:
        assert self._marks is not None
        for piece in reading.pieces:
            if (special_S & (sample.byte_start >= piece.start) & (sample.byte_end <= piece.end)).any():
                return None, Outcome.MARKUP
        if any(mark in text for mark in self._marks.of_tools):
            return None, Outcome.TOOLS
        try:
            rendered = self._rendered(sample, text, reading)
        except (BadRecord, UnicodeDecodeError):
            return None, Outcome.REFUSED
        data = rendered.text.encode()
        if not data.startswith(text) or (len(data) > len(text)) != reading.cut:
            return None, Outcome.TEXT
        if not self._has_same_tokens(sample, rendered.text, reading.cut):
            return None, Outcome.TOKENS
        spans = TokenSpans(text, sample.input_ids, sample.byte_start.astype(np.int64), sample.byte_end.astype(np.int64))
        learned_S = self._reply_mask(spans, in_bytes(rendered.text, rendered.spans))
        if not np.array_equal(learned_S[1:], sample.loss_mask[:-1]):
            return None, Outcome.MASK
        return cut_record(rendered.record, len(text)), Outcome.PROVEN

    def _rendered(self, sample: TokenSample, text: bytes, reading: Reading) -> RenderedChat:
        messages: list[dict[str, Any]] = []
        begun = bool(sample.loss_mask[-2:-1].any())  # where the text ends; a header may be learned in part
        for number, piece in enumerate(reading.pieces):
            if piece.opens:
                messages.append({"role": piece.said.role, "train": False})
            said = text[piece.start : piece.end].decode()
            ends_here = reading.cut and number == len(reading.pieces) - 1 and piece.end == len(text)
            messages[-1][piece.said.key] = said + _MORE * ends_here
            messages[-1]["train"] |= begun if piece.start == len(text) else _learns(sample, piece)
        if reading.following is not None:
            messages.append({"role": reading.following.role, "train": begun, reading.following.key: _MORE})
        for message in messages:
            message.setdefault("content", _MORE)  # cut inside of the reasoning before it
        document = Document(sample.source_id, f"sample {sample.key}", sample.layer, "", messages)
        return self._renderer.render(document)

    def _has_same_tokens(self, sample: TokenSample, text: str, cut: bool) -> bool:
        """Whether the tokens of ``text`` are the sample's.

        Those of a word depend on how it goes on: the last tokens of a cut sample may be others that spell the same.
        """
        spans = self._tokenizer.encode([text])[0]
        found = np.stack([spans.ids.astype(np.int64), spans.start, spans.end])
        wanted = np.stack([sample.input_ids, sample.byte_start, sample.byte_end]).astype(np.int64)
        shorter = min(found.shape[1], wanted.shape[1])
        differs = np.append((found[:, :shorter] != wanted[:, :shorter]).any(axis=0), True)
        same = int(differs.argmax())
        if same == wanted.shape[1]:
            return cut or same == found.shape[1]
        rest, begin, end = sample.input_ids[same:], int(wanted[1, same]), int(wanted[2, -1])
        special = (
            np.isin(rest, self._special).any() or np.isin(found[0, same:][found[1, same:] < end], self._special).any()
        )
        return cut and not special and self._tokenizer.spell(rest).data == spans.data[begin:end]


def _learns(sample: TokenSample, piece: Piece) -> bool:
    """Whether a token of the piece is learned; of an empty one, the token that follows."""
    learned_S, end = np.append(False, sample.loss_mask[:-1]), max(piece.end, piece.start + 1)
    return bool((learned_S & (sample.byte_start < end) & (sample.byte_end > piece.start)).any())
