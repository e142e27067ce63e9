"""Samples of a cache as rows for a student with another tokenizer: its tokens, and what the teacher says of each.

Shape letters: J student tokens, S teacher tokens, P teacher rows, K stored entries, M draws, E weights of a row.
"""

from typing import Literal, NamedTuple

import numpy as np

from schemas.chat_record import ChatRecord
from schemas.errors import CorruptCacheError
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.retarget.pieces import CommonPieces, common_pieces
from teacher_cache.retarget.row_targets import Align, RowTargets, TeacherTokens, Vocabularies, row_targets
from teacher_cache.retarget.student_text import StudentText, StudentTokenizer, spelled
from teacher_cache.signals.logits.softened import softened_probabilities
from teacher_cache.token_table import Vocabulary


class Retargeted(NamedTuple):
    """A sample for the student. ``targets`` are, for each token, what the row before it is to predict."""

    text: StudentText
    targets: RowTargets


class Retargeter:
    """Turns samples of one cache into rows for one student."""

    def __init__(self, vocabulary: Vocabulary, student: StudentTokenizer, align: Align = Align.ALL) -> None:
        self._vocabulary = vocabulary
        self._student = student
        self._align = align
        stops = np.flatnonzero(vocabulary.is_stop_V).tolist()
        self._of_text = Vocabularies.of(
            vocabulary.as_text(), student.table, stops, student.text_stop, student.never_read, align == Align.CLASSES
        )
        self._of_chat = self._of_text.with_stop(student.turn_stop)

    @property
    def whole_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """The student token that each whole teacher token stands for, int32 [V]; -1: none. In texts, and in chats."""
        return self._of_text.whole_V, self._of_chat.whole_V

    @property
    def common_tokens(self) -> np.ndarray | None:
        """The common token of each student token, which names its class, int32 [V]; None unless weights are theirs."""
        return self._of_text.class_V if self._align == Align.CLASSES else None

    def read(self, sample: TokenSample, chat: ChatRecord | None) -> StudentText | None:
        """The sample in the student's tokens; None for a piece from the middle of a chat.

        Raises UserError (``BadRecord``) if the student's template refuses the chat.
        """
        return self._student.read(sample, chat, self._vocabulary)

    def spelled_share(self, sample: TokenSample) -> float:
        """Share of a sample's tokens whose bytes, as the vocabulary has them, are those of the text at their spans."""
        ids_S, start_S, end_S = (
            array.astype(np.int64) for array in (sample.input_ids, sample.byte_start, sample.byte_end)
        )
        text_B = np.frombuffer(sample.text.encode(), np.uint8)
        spelled_S = spelled(self._vocabulary.table, ids_S, start_S, end_S, text_B)
        return float(spelled_S[end_S > start_S].mean()) if (end_S > start_S).any() else 1.0

    def targets(self, teacher: TeacherTokens, text: StudentText) -> RowTargets:
        """What the rows before the student's tokens are to predict."""
        vocabularies = self._of_chat if text.is_chat else self._of_text
        return row_targets(teacher, text.tokens, vocabularies, self._align)

    def pieces(self, teacher: TeacherTokens, text: StudentText, rows: LogitsSample) -> CommonPieces:
        """Pieces of text that are whole tokens for teacher and student, at their last student tokens."""
        vocabularies = self._of_chat if text.is_chat else self._of_text
        return common_pieces(teacher, text.tokens, vocabularies, rows.next_logprob)

    def __call__(
        self, sample: TokenSample, chat: ChatRecord | None, rows: LogitsSample, column: int, temperature: float
    ) -> Retargeted | None:
        """``read`` and ``targets`` of the stored entries; column: of the log-partition at ``temperature``."""
        text = self.read(sample, chat)
        if text is None:
            return None
        return Retargeted(text, self.targets(teacher_tokens(sample, rows, column, temperature), text))


def teacher_tokens(sample: TokenSample, rows: LogitsSample, column: int, temperature: float) -> TeacherTokens:
    """A sample with its stored entries, softened.

    Quantisation can bring the sum of a row above 1; such a row is divided by it. Raises CorruptCacheError if spans go
    back, which would make a walk over them quadratic.
    """
    for span_S in (sample.byte_start, sample.byte_end):
        if (span_S[1:] < span_S[:-1]).any():
            raise CorruptCacheError(f"sample {sample.key}: byte spans of tokens go back in the text")
    partition_P = rows.log_partition[:, column].astype(np.float64)
    weights_PK = softened_probabilities(rows, column, temperature)
    weights_PK /= np.maximum(1.0, weights_PK.sum(axis=1))[:, None]
    realised_P = np.exp(np.nan_to_num(rows.next_logprob.astype(np.float64) / temperature, nan=-np.inf) - partition_P)
    row_S = np.full(len(sample.input_ids) + 1, -1, np.int64)
    row_S[rows.positions + 1] = np.arange(len(rows.positions))
    return TeacherTokens(
        np.frombuffer(sample.text.encode(), np.uint8),
        sample.input_ids.astype(np.int64),
        sample.byte_start.astype(np.int64),
        sample.byte_end.astype(np.int64),
        row_S[:-1],
        rows.ids,
        weights_PK,
        realised_P,
    )


def with_draws(teacher: TeacherTokens, ids_PM: np.ndarray, region: Literal["tail", "all"]) -> TeacherTokens:
    """The same tokens with draws: in place of the stored entries, or, from the tail, beside them.

    ids_PM: int32, of the same rows, repeated as often as drawn. Each has the same share of the mass drawn from.
    """
    n_draws = ids_PM.shape[1]
    if region == "all":
        return teacher._replace(ids_PE=ids_PM, weights_PE=np.full(ids_PM.shape, 1 / n_draws))
    tail_P1 = np.maximum(0.0, 1 - teacher.weights_PE.sum(axis=1, keepdims=True))
    return teacher._replace(
        ids_PE=np.concatenate([teacher.ids_PE, ids_PM], axis=1),
        weights_PE=np.concatenate([teacher.weights_PE, np.repeat(tail_P1 / n_draws, n_draws, axis=1)], axis=1),
    )
