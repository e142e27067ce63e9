"""Pieces of text that teacher and student both read as whole tokens, with the teacher's likelihood of each.

A piece is the shortest stretch between two bytes at which a token begins or ends on both sides. It is found where
tokens cover it without gap or overlap, the teacher's spell it, and a row with the log-probability of the token that
followed is stored for each. A stop token of the student where the teacher has one is a piece of its own.

Compared by ``losses.alm`` (Minixhofer et al. 2025, arXiv:2503.20083). Shape letters as in ``row_targets``.
"""

import math
from typing import NamedTuple

import numpy as np

from teacher_cache.codec.compiled import compiled
from teacher_cache.retarget.row_targets import StudentTokens, TeacherTokens, Vocabularies, overlaps, spells
from teacher_cache.token_table import TokenTable


class CommonPieces(NamedTuple):
    """The pieces of a sequence, each at its last student token."""

    tokens_J: np.ndarray  # int32; student tokens of the piece that ends with this token; 0: none does
    logprob_J: np.ndarray  # float64, nats; of the piece's teacher tokens together; 0 where none ends


def common_pieces(
    teacher: TeacherTokens, student: StudentTokens, vocabularies: Vocabularies, next_logprob_P: np.ndarray
) -> CommonPieces:
    """Find the pieces of a sequence. No piece holds the sequence's first token, which nothing predicts.

    next_logprob_P: log-probability of the token that followed each row, at temperature 1, nats; not finite: unknown.
    """
    found = CommonPieces(np.zeros(len(student.ids_J), np.int32), np.zeros(len(student.ids_J)))
    logprob_P = next_logprob_P.astype(np.float64)
    _find_pieces(teacher, student, vocabularies.teacher, vocabularies.is_stop_V, logprob_P, found)
    return found


@compiled
def _find_pieces(
    teacher: TeacherTokens,
    student: StudentTokens,
    table: TokenTable,
    is_stop_V: np.ndarray,
    logprob_P: np.ndarray,
    found: CommonPieces,
) -> None:
    n_teacher = len(teacher.ids_S)
    k = 0  # the first teacher token that is not read yet
    first = -1  # the student token with which the stretch begins; -1: outside of one
    reached, logprob, is_sound = 0, 0.0, False
    for j in range(len(student.ids_J)):
        x, y = student.start_J[j], student.end_J[j]
        if x < 0 or student.is_stop_J[j] or y <= x:
            first = -1
            if x >= 0 and student.is_stop_J[j] and j > 0:
                stop = _stop_at(teacher, is_stop_V, k, x)
                if stop >= 0 and _is_known(teacher, stop, logprob_P):
                    found.tokens_J[j], found.logprob_J[j] = 1, logprob_P[teacher.row_S[stop]]
            continue
        if first >= 0 and x != student.end_J[j - 1]:
            first = -1
        while k > 0 and teacher.end_S[k - 1] > x:
            k -= 1
        while k < n_teacher and teacher.end_S[k] <= x:
            k += 1
        if k < n_teacher and teacher.start_S[k] == x:
            first, reached, logprob, is_sound = j, x, 0.0, True
        if first < 0:
            continue
        while k < n_teacher and teacher.end_S[k] <= y and reached < y:
            is_sound = is_sound and teacher.start_S[k] == reached and _is_whole(teacher, table, k)
            is_sound = is_sound and _is_known(teacher, k, logprob_P)
            if is_sound:
                logprob += logprob_P[teacher.row_S[k]]
            reached = teacher.end_S[k]
            k += 1
        if reached == y:
            if is_sound and first > 0:
                found.tokens_J[j], found.logprob_J[j] = j - first + 1, logprob
            first = -1


@compiled
def _is_known(teacher: TeacherTokens, k: int, logprob_P: np.ndarray) -> bool:
    """Whether the log-probability of the token is stored."""
    return teacher.row_S[k] >= 0 and math.isfinite(logprob_P[teacher.row_S[k]])


@compiled
def _is_whole(teacher: TeacherTokens, table: TokenTable, k: int) -> bool:
    """Whether the token spells its span and shares no byte with another; a blank before the text may be missing."""
    start, size = teacher.start_S[k], teacher.end_S[k] - teacher.start_S[k]
    missing = table.length_V[teacher.ids_S[k]] - size
    if size <= 0 or missing > 1 or (missing == 1 and start > 0) or overlaps(teacher, k):
        return False
    return spells(table, teacher.ids_S[k], missing, teacher.text_B, start)


@compiled
def _stop_at(teacher: TeacherTokens, is_stop_V: np.ndarray, k: int, x: int) -> int:
    """The first stop token that begins at byte ``x``, searched from token ``k`` on; -1: none."""
    while k > 0 and teacher.start_S[k - 1] >= x:
        k -= 1
    while k < len(teacher.ids_S) and teacher.start_S[k] <= x:
        if teacher.start_S[k] == x and is_stop_V[teacher.ids_S[k]]:
            return k
        k += 1
    return -1
