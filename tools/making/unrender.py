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
    following: Said | None = None  # of the message that had begun, where the text is cut before its first byte


class Unrenderer:
    """Finds the messages of rendered chats, with a teacher's tokenizer and chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", corpus: CorpusConfig) -> None:
        """``corpus``: the settings with which the chats were rendered. Raises UserError for an unusable template."""
        source = template_source(tokenizer, corpus.chat_template)
        self._renderer = ChatRenderer(tokenizer, corpus)
        self._marks = TurnMarks(self._renderer, source) if source else None
        self._trained_roles = corpus.roles_to_train
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
        is_chat = bool(special_S.any())
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
        yield Reading(pieces, cut=False)

    def _cut(self, text: bytes, pieces: list[Piece]) -> Iterator[Reading]:
        """The text ends inside the mark after the last piece (the longest such mark first), or inside the piece."""
        assert self._marks is not None
        *whole, last = pieces
        endings = {
            (len(mark.literal[:size]), mark.said if mark.opens else None)
            for mark in self._marks.after.get(last.said, [])
            for size in range(1, min(len(mark.literal), last.end - last.start + 1))
            if text.endswith(mark.literal[:size])
        }
        for size, following in sorted(endings, key=lambda ending: (-ending[0], str(ending[1]))):
            yield Reading([*whole, last._replace(end=last.end - size)], cut=True, following=following)
        yield Reading(pieces, cut=True)

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
        for number, piece in enumerate(reading.pieces):
            if piece.opens:
                messages.append({"role": piece.said.role, "train": piece.said.role in self._trained_roles})
            said = text[piece.start : piece.end].decode()
            ends_here = reading.cut and number == len(reading.pieces) - 1 and piece.end == len(text)
            messages[-1][piece.said.key] = said + _MORE * ends_here
            if piece.start < piece.end:
                messages[-1]["train"] = _learns(sample, piece)
        if reading.following is not None:
            messages.append({"role": reading.following.role, "train": False, reading.following.key: _MORE})
        for message in messages:
            message.setdefault("content", _MORE)  # cut inside of the reasoning before it
        document = Document(sample.source_id, f"sample {sample.key}", sample.layer, "", messages)
        return self._renderer.render(document)

    def _has_same_tokens(self, sample: TokenSample, text: str, cut: bool) -> bool:
        """Whether the tokens of ``text`` are the sample's; of a cut sample, whether the special ones are.

        The tokens of a word depend on how it goes on, so that those before the cut may differ.
        """
        spans = self._tokenizer.encode([text])[0]
        found, wanted = (
            np.stack([ids.astype(np.int64), start.astype(np.int64), end.astype(np.int64)])
            for ids, start, end in (
                (spans.ids, spans.start, spans.end),
                (sample.input_ids, sample.byte_start, sample.byte_end),
            )
        )
        if cut:
            found, wanted = (each[:, np.isin(each[0], self._special)] for each in (found, wanted))
            found = found[:, found[2] <= len(sample.text.encode())]
        return np.array_equal(found, wanted)


def _learns(sample: TokenSample, piece: Piece) -> bool:
    """Whether a token of the piece is learned."""
    learned_S = np.append(False, sample.loss_mask[:-1])
    return bool((learned_S & (sample.byte_start < piece.end) & (sample.byte_end > piece.start)).any())
