"""A cached sample as a student with another tokenizer reads it, token by token beside the teacher's text.

Plain text is tokenised again. A chat is rendered again with the student's own chat template, from the messages that the
cache keeps; the texts that both renderings hold are laid over each other, byte by byte, message by message. Nothing of
the student's template lies on the teacher's.

Shape letters: J student tokens, S teacher tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.chat_record import ChatRecord
from schemas.errors import UserError
from teacher_cache.codec.compiled import compiled
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.mask import ReplyMask, in_bytes
from teacher_cache.corpus.token_spans import ByteTokenizer, TokenSpans, added_around, special_ids
from teacher_cache.records import TokenSample
from teacher_cache.retarget.row_targets import StudentTokens, spells
from teacher_cache.teacher_vocabulary import end_of_turn
from teacher_cache.token_table import TokenTable, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACES = b" \t\r\n"


class Overlay(NamedTuple):
    """A stretch of bytes that both texts hold."""

    teacher: int  # first byte in the teacher's text
    student: int  # and in the student's
    size: int


@dataclass(frozen=True)
class StudentText:
    """A sample in the student's tokens."""

    loss_mask_J: np.ndarray  # bool; True at j: the prediction of token j + 1 counts; the last is False
    tokens: StudentTokens  # with where they lie in the teacher's text
    is_chat: bool

    @property
    def ids_J(self) -> np.ndarray:
        """The tokens' ids, int64."""
        return self.tokens.ids_J


class StudentTokenizer:
    """A student's tokenizer and chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises UserError if it is a slow tokenizer, which gives no spans."""
        if not tokenizer.is_fast:
            raise UserError(
                f"student: {tokenizer.name_or_path}: {type(tokenizer).__name__} is a slow tokenizer without offsets; "
                "use a folder with tokenizer.json"
            )
        corpus = CorpusConfig(sources=[SourceConfig(path="the cache")])
        encoder = ByteTokenizer(tokenizer)
        self.table = encoder.table.without([*special_ids(tokenizer)])
        before, _ = added_around(tokenizer)
        self._before = np.array(before, np.int64)
        self._encode = encoder.encode
        self._renderer = ChatRenderer(tokenizer, corpus)
        self._reply_mask = ReplyMask(tokenizer)
        self.text_stop = -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        self._turn_stops = end_of_turn(tokenizer, corpus)
        self.turn_stop = min(self._turn_stops, default=self.text_stop)

    def read(self, sample: TokenSample, chat: ChatRecord | None, teacher: Vocabulary) -> StudentText | None:
        """The sample in the student's tokens; None for a piece from the middle of a chat.

        Raises UserError (``BadRecord``) if the student's chat template refuses the chat, or loses a reply.
        """
        if chat is None:
            return self._plain(sample, teacher)
        return self._chat(sample, chat) if chat.messages else None

    def _plain(self, sample: TokenSample, teacher: Vocabulary) -> StudentText:
        spans = self._encode([sample.text])[0]
        end = len(spans.data)
        stops = teacher.is_stop_V[sample.input_ids[-1]] and sample.byte_start[-1] == end and self.text_stop >= 0
        own = np.array([self.text_stop] * int(stops), np.int64)
        start_J, end_J = self._aligned(spans, [Overlay(0, 0, end)])
        lead, closing = np.full(len(self._before), -1), np.full(len(own), end)
        ids_J = np.concatenate([self._before, spans.ids, own]).astype(np.int64)
        learned_B = _learned_bytes(sample, end)
        learned_J = np.concatenate([np.zeros(len(lead), bool), learned_B[spans.start], learned_B[closing]])
        tokens = StudentTokens(
            ids_J,
            np.concatenate([lead, start_J, closing]),
            np.concatenate([lead, end_J, closing]),
            np.arange(len(ids_J)) >= len(ids_J) - len(own),
        )
        return StudentText(_predicting(learned_J), tokens, is_chat=False)

    def _chat(self, sample: TokenSample, chat: ChatRecord) -> StudentText:
        text = sample.text.encode()
        messages = [message.restored(text) | {"train": message.learned} for message in chat.messages]
        document = Document(
            sample.source_id, f"sample {sample.key}", sample.layer, "", messages, chat.tools, chat.documents,
            chat.template_kwargs,
        )  # fmt: skip
        rendered = self._renderer.render(document)
        spans = self._encode([rendered.text])[0]
        start_J, end_J = self._aligned(spans, _overlays(chat, text, rendered.record, spans.data))
        is_stop_J = np.zeros(len(spans.ids), bool)
        for theirs, ours in zip(chat.messages, rendered.record.messages, strict=True):
            if not (theirs.closed and ours.closed and theirs.spans and ours.spans):
                continue
            at = max(end for _, end in ours.spans.values())
            j = int(np.searchsorted(spans.start, at))
            if j < len(spans.ids) and spans.start[j] == at and int(spans.ids[j]) in self._turn_stops:
                is_stop_J[j] = True
                start_J[j] = end_J[j] = max(end for _, end in theirs.spans.values())
        learned_J = self._reply_mask(spans, in_bytes(rendered.text, rendered.spans))
        tokens = StudentTokens(spans.ids.astype(np.int64), start_J, end_J, is_stop_J)
        return StudentText(_predicting(learned_J), tokens, is_chat=True)

    def _aligned(self, spans: TokenSpans, overlays: list[Overlay]) -> tuple[np.ndarray, np.ndarray]:
        """Byte spans of the tokens in the teacher's text, int64 [J] each; -1 for those that do not lie on it.

        A token whose bytes are not those of the text (a normaliser has changed them) does not either.
        """
        start_J, end_J = np.full(len(spans.ids), -1, np.int64), np.full(len(spans.ids), -1, np.int64)
        spelled_J = spelled(self.table, spans.ids, spans.start, spans.end, np.frombuffer(spans.data, np.uint8))
        for teacher, student, size in overlays:
            inside_J = spelled_J & (spans.start >= student) & (spans.end <= student + size)
            start_J[inside_J] = spans.start[inside_J] - student + teacher
            end_J[inside_J] = spans.end[inside_J] - student + teacher
        return start_J, end_J


def _predicting(learned_J: np.ndarray) -> np.ndarray:
    """Loss mask: a row counts if the token after it is learned."""
    return np.append(learned_J[1:], False)


def _learned_bytes(sample: TokenSample, size: int) -> np.ndarray:
    """Which bytes of a plain text are learned, bool [size + 1]; the last stands for what follows the text.

    The first token of a sequence is not predicted, but learned where the second is.
    """
    learned_S = np.append(sample.loss_mask[:1], sample.loss_mask[:-1])
    edge_B = np.zeros(size + 2, np.int64)
    np.add.at(edge_B, sample.byte_start[learned_S], 1)
    np.add.at(edge_B, sample.byte_end[learned_S], -1)
    learned_B = np.cumsum(edge_B)[: size + 1] > 0
    learned_B[size] = learned_S[-1]
    return learned_B


def _overlays(theirs: ChatRecord, their_text: bytes, ours: ChatRecord, our_text: bytes) -> list[Overlay]:
    """The texts of replies that both renderings hold."""
    found = []
    for their, our in zip(theirs.messages, ours.messages, strict=True):
        if not their.learned:
            continue
        for key in their.spans.keys() & our.spans.keys():
            (start, end), (own_start, own_end) = their.spans[key], our.spans[key]
            said, own = their_text[start:end], our_text[own_start:own_end]
            if said.strip() == own.strip():  # templates may drop the blanks around it
                lead, own_lead = (len(text) - len(text.lstrip()) for text in (said, own))
                found.append(
                    _widened(Overlay(start + lead, own_start + own_lead, len(said.strip())), their_text, our_text)
                )
    return found


def _widened(overlay: Overlay, their_text: bytes, our_text: bytes) -> Overlay:
    """The overlay with the blanks around it that both texts hold: a token may begin with one before a reply."""
    theirs, ours, size = overlay
    while theirs > 0 and ours > 0 and their_text[theirs - 1] == our_text[ours - 1] and their_text[theirs - 1] in SPACES:
        theirs, ours, size = theirs - 1, ours - 1, size + 1
    end = theirs + size
    while their_text[end : end + 1] == our_text[ours + size : ours + size + 1] and their_text[end : end + 1].isspace():
        end, size = end + 1, size + 1
    return Overlay(theirs, ours, size)


@compiled
def spelled(
    table: TokenTable, ids_J: np.ndarray, start_J: np.ndarray, end_J: np.ndarray, text_B: np.ndarray
) -> np.ndarray:
    """Whether the text holds a token's own bytes at its span, bool [J]; a blank before the text may be missing."""
    found = np.zeros(len(ids_J), np.bool_)
    for j in range(len(ids_J)):
        missing = table.length_V[ids_J[j]] - (end_J[j] - start_J[j])
        if missing == 0 or (missing == 1 and start_J[j] == 0):
            found[j] = spells(table, ids_J[j], missing, text_B, start_J[j])
    return found
