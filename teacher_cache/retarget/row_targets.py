"""A teacher's rows as weights on the student's tokens, by byte-prefix marginalisation (arXiv:2607.22334).

Student token j begins at byte x. The teacher token k that covers x was predicted by one teacher row: weights p on the
teacher's tokens v, whose bytes are b(v). Let u be the bytes of token k before x, and φ(b) the longest token of the
student that is a prefix of b (``prefixes``).

- *Border* (u is empty): w(s) = Σ p(v) over φ(b(v)) = s.
- *Inside*: w(s) = Σ p(v) / D over tokens whose bytes go on after u, with φ(b(v) without u) = s; D is the Σ p(v) of all
  that go on.
- *Crossing*: token j ends after token k. The probability of the realised chain of teacher tokens, whole ones and the
  beginning of the last, is a lower bound of that of token j; so much moves from w(φ of token k) to w(j).

Stop tokens of the teacher stand for the stop token of the student. What is left, 1 - Σ w, belongs to all other tokens.
A student token of blanks and tabs alone is not taught: tokenizers cut white space differently, which does most harm.

In classes (``common_tokens``) φ names the common token of a class, and weights are those of classes: the class does not
depend on where the student's token ends, so there is no crossing. Where the class of token j is not that of what is
left of token k (2 to 3 % of tokens), the row learns the former alone.

Shape letters: S teacher tokens of a sequence, J student tokens, P teacher rows, E weights of a row.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Self

import numpy as np

from teacher_cache.codec.compiled import compiled
from teacher_cache.retarget.common_tokens import common_tokens
from teacher_cache.retarget.prefixes import longest_prefixes, of_whole_tokens
from teacher_cache.token_table import TokenTable


class Align(IntEnum):
    """Which student tokens are taught."""

    STRICT = 0  # those that are teacher tokens, too
    BORDER = 1  # and those that begin where a teacher token does
    ALL = 2  # and those that begin inside one
    CLASSES = 3  # the same, over classes of tokens with one common token


class Kind(IntEnum):
    """How a student token lies to the teacher's."""

    NO_ROW = 0  # no teacher row about it: template, first token, row that is not stored
    EQUAL = 1  # the same bytes
    BORDER = 2  # begins where a teacher token does
    INSIDE = 3  # begins inside a teacher token
    BLANK = 4  # only blanks and tabs: not taught
    NO_MASS = 5  # no stored token begins with what was read of the teacher token
    UNCLEAR = 6  # the teacher token's bytes are not those of the text, or a blank before it is missing on one side
    STOP = 7  # the student's stop token where the teacher's is


TAUGHT = (Kind.EQUAL, Kind.BORDER, Kind.INSIDE, Kind.STOP)


class TeacherTokens(NamedTuple):
    """A sequence as the teacher read it, and its rows."""

    text_B: np.ndarray  # uint8
    ids_S: np.ndarray  # int64
    start_S: np.ndarray  # int64; byte spans in the text
    end_S: np.ndarray  # int64
    row_S: np.ndarray  # int64; the row that predicts the token; -1: none is stored
    ids_PE: np.ndarray  # int32
    weights_PE: np.ndarray  # float64, ≥ 0; 0 in the padding; their sum is at most 1
    realised_P: np.ndarray  # float64; probability of the token that followed


class StudentTokens(NamedTuple):
    """The same text as the student reads it; spans are in the teacher's text."""

    ids_J: np.ndarray  # int64
    start_J: np.ndarray  # int64; -1 outside of what both have read
    end_J: np.ndarray  # int64
    is_stop_J: np.ndarray  # bool; a stop token, at the byte where it stands


class Vocabularies(NamedTuple):
    """What is known of the two vocabularies."""

    teacher: TokenTable
    prefixes_B: np.ndarray  # int32; ``longest_prefixes``
    whole_V: np.ndarray  # int32; the student token of a whole teacher token: φ, or the stop token; -1: none
    is_stop_V: np.ndarray  # bool; stop tokens of the teacher
    student_length_V: np.ndarray  # int64; bytes of the student's tokens
    class_V: np.ndarray  # int32; with classes: the common token of each student token; else the token itself

    @classmethod
    def of(
        cls,
        teacher: TokenTable,
        student: TokenTable,
        teacher_stops: Sequence[int],
        student_stop: int,
        never_read: Sequence[int] = (),
        in_classes: bool = False,
    ) -> Self:
        """Of two tables, the teacher's stop tokens, the student's (-1: none), and student tokens that stand for none
        of the teacher's, because text does not become them.

        in_classes: the student's tokens in ``prefixes_B`` and ``whole_V`` are the common tokens of their classes.
        """
        read = student.without(np.array(never_read, np.int64))
        prefixes_B = longest_prefixes(teacher, read)
        whole_V = of_whole_tokens(teacher, prefixes_B)
        class_V = np.arange(len(student.length_V), dtype=np.int32)
        if in_classes:
            class_V = common_tokens(teacher, read, whole_V)
            prefixes_B, whole_V = (np.where(ids >= 0, class_V[ids], np.int32(-1)) for ids in (prefixes_B, whole_V))
        is_stop_V = np.isin(np.arange(len(whole_V)), teacher_stops)
        whole_V[is_stop_V] = student_stop
        return cls(teacher, prefixes_B, whole_V, is_stop_V, student.length_V, class_V)

    def with_stop(self, student_stop: int) -> Self:
        """The same, with another stop token of the student."""
        whole_V = self.whole_V.copy()
        whole_V[self.is_stop_V] = student_stop
        return self._replace(whole_V=whole_V)


class RowTargets(NamedTuple):
    """Weights on student tokens, one row for each student token: what the row *before* it is to predict."""

    ids_JE: np.ndarray  # int32; by falling weight, 0 in the padding
    weights_JE: np.ndarray  # float64; 0 in the padding
    rest_J: np.ndarray  # float64; the weight of all other tokens together
    kind_J: np.ndarray  # uint8; Kind
    crosses_J: np.ndarray  # bool; ends after the teacher token in which it begins
    whole_row_J: (
        np.ndarray
    )  # int64; the teacher row whose whole distribution, through ``whole_V``, is this one; -1: none


MIN_MASS = 1e-6  # of the teacher's tokens that begin with what was read
BLANKS = (0x20, 0x09)


def row_targets(
    teacher: TeacherTokens, student: StudentTokens, vocabularies: Vocabularies, align: Align = Align.ALL
) -> RowTargets:
    """The weights that each student token's predicting row is to learn; all 0 where it is not taught."""
    n_tokens, n_entries = len(student.ids_J), teacher.ids_PE.shape[1] + 1
    found = RowTargets(
        np.zeros((n_tokens, n_entries), np.int32),
        np.zeros((n_tokens, n_entries)),
        np.zeros(n_tokens),
        np.zeros(n_tokens, np.uint8),
        np.zeros(n_tokens, np.bool_),
        np.full(n_tokens, -1, np.int64),
    )
    slot_V = np.full(len(vocabularies.student_length_V), -1, np.int32)
    _fill_targets(teacher, student, vocabularies, int(align), slot_V, found)
    return found


@compiled
def _fill_targets(
    teacher: TeacherTokens,
    student: StudentTokens,
    vocabularies: Vocabularies,
    align: int,
    slot_V: np.ndarray,
    found: RowTargets,
) -> None:
    table, prefixes_B, whole_V = vocabularies.teacher, vocabularies.prefixes_B, vocabularies.whole_V
    is_stop_V, class_V = vocabularies.is_stop_V, vocabularies.class_V
    in_classes = align == Align.CLASSES.value
    n_teacher = len(teacher.ids_S)
    k = 0
    for j in range(len(student.ids_J)):
        x, y = student.start_J[j], student.end_J[j]
        if x < 0:
            continue
        while k > 0 and teacher.end_S[k - 1] > x:
            k -= 1
        while (
            k < n_teacher
            and teacher.end_S[k] <= x
            and not (student.is_stop_J[j] and teacher.start_S[k] == x and is_stop_V[teacher.ids_S[k]])
        ):
            k += 1
        if k == n_teacher:
            continue
        token = teacher.ids_S[k]
        row = teacher.row_S[k]
        if student.is_stop_J[j]:
            if not is_stop_V[token] or teacher.start_S[k] != x or row < 0:
                continue
            kind, read = Kind.STOP.value, 0
        else:
            if y <= x or teacher.start_S[k] > x or row < 0:
                continue
            if _is_blank(teacher.text_B, x, y):
                found.kind_J[j] = Kind.BLANK.value
                continue
            read = table.length_V[token] - (teacher.end_S[k] - x)
            if not spells(table, token, read, teacher.text_B, x) or overlaps(teacher, k):
                found.kind_J[j] = Kind.UNCLEAR.value
                continue
            missing = vocabularies.student_length_V[student.ids_J[j]] - (
                y - x
            )  # the blank that SentencePiece puts before a text
            if missing > 0 and x == 0:
                if x != teacher.start_S[k] or read != missing:
                    found.kind_J[j] = Kind.UNCLEAR.value
                    continue
                read = 0
            kind = Kind.INSIDE.value
            if x == teacher.start_S[k]:
                kind = Kind.EQUAL.value if y == teacher.end_S[k] else Kind.BORDER.value
        found.kind_J[j] = kind
        found.crosses_J[j] = y > teacher.end_S[k]
        if (align == Align.STRICT.value and kind in (Kind.BORDER.value, Kind.INSIDE.value)) or (
            align == Align.BORDER.value and kind == Kind.INSIDE.value
        ):
            continue
        mass = 1.0
        if read > 0:
            mass = _mass_after(table, token, read, teacher.ids_PE[row], teacher.weights_PE[row])
            if mass < MIN_MASS:
                found.kind_J[j] = Kind.NO_MASS.value
                continue
        if in_classes and kind != Kind.STOP.value:
            s = whole_V[token] if read == 0 else prefixes_B[table.begin_V[token] + read]
            if s != class_V[student.ids_J[j]]:
                found.ids_JE[j, 0], found.weights_JE[j, 0] = class_V[student.ids_J[j]], 1.0
                continue
        if read == 0 and (in_classes or y <= teacher.end_S[k]):
            found.whole_row_J[j] = row
        n_found, total, realised_slot = 0, 0.0, -1
        for e in range(teacher.ids_PE.shape[1]):
            weight = teacher.weights_PE[row, e] / mass
            v = teacher.ids_PE[row, e]
            if weight <= 0.0:
                continue
            if read == 0:
                s = whole_V[v]
            elif table.length_V[v] > read and _same_beginning(table, v, token, read):
                s = prefixes_B[table.begin_V[v] + read]
            else:
                continue
            if s < 0:
                continue
            if slot_V[s] < 0:
                slot_V[s] = n_found
                found.ids_JE[j, n_found] = s
                n_found += 1
            found.weights_JE[j, slot_V[s]] += weight
            total += weight
            if v == token:
                realised_slot = slot_V[s]
        if not in_classes and kind != Kind.STOP.value and y > teacher.end_S[k]:
            chain = teacher.realised_P[row] / mass * _chain(teacher, table, k, y)
            if realised_slot >= 0:
                chain = min(chain, found.weights_JE[j, realised_slot])
                found.weights_JE[j, realised_slot] -= chain
            else:  # the token that followed is not stored: the mass comes from all others
                chain = min(chain, max(0.0, 1.0 - total))
                total += chain
            s = student.ids_J[j]
            if chain > 0.0:
                if slot_V[s] < 0:
                    slot_V[s] = n_found
                    found.ids_JE[j, n_found] = s
                    n_found += 1
                found.weights_JE[j, slot_V[s]] += chain
        for e in range(n_found):
            slot_V[found.ids_JE[j, e]] = -1
        found.rest_J[j] = max(0.0, 1.0 - total)
        _sort_row(found.ids_JE[j], found.weights_JE[j], n_found)


@compiled
def _is_blank(text_B: np.ndarray, start: int, end: int) -> bool:
    for at in range(start, end):  # noqa: SIM110
        if text_B[at] != BLANKS[0] and text_B[at] != BLANKS[1]:
            return False
    return True


@compiled
def spells(table: TokenTable, token: int, read: int, text_B: np.ndarray, x: int) -> bool:
    """Whether the token's bytes after the first ``read`` are those of the text from ``x`` on."""
    if read < 0:
        return False
    begin, length = table.begin_V[token], table.length_V[token]
    for at in range(read, length):
        if table.bytes_B[begin + at] != text_B[x + at - read]:
            return False
    return length > read


@compiled
def overlaps(teacher: TeacherTokens, k: int) -> bool:
    """Whether the token shares bytes with a neighbour: both are pieces of one character, cut somewhere unknown."""
    before = k > 0 and teacher.end_S[k - 1] > teacher.start_S[k]
    return before or (k + 1 < len(teacher.ids_S) and teacher.start_S[k + 1] < teacher.end_S[k])


@compiled
def _same_beginning(table: TokenTable, one: int, other: int, length: int) -> bool:
    """Whether the first ``length`` bytes of two tokens are the same; both must have them."""
    first, second = table.begin_V[one], table.begin_V[other]
    for at in range(length):  # noqa: SIM110
        if table.bytes_B[first + at] != table.bytes_B[second + at]:
            return False
    return True


@compiled
def _mass_after(table: TokenTable, token: int, read: int, ids_E: np.ndarray, weights_E: np.ndarray) -> float:
    """The weight of all tokens that go on after the first ``read`` bytes of ``token``."""
    mass = 0.0
    for e in range(len(ids_E)):
        if weights_E[e] > 0.0 and table.length_V[ids_E[e]] > read and _same_beginning(table, ids_E[e], token, read):
            mass += weights_E[e]
    return mass


@compiled
def _chain(teacher: TeacherTokens, table: TokenTable, k: int, y: int) -> float:
    """The probability of the text from the end of token ``k`` to byte ``y``, along the tokens that followed."""
    probability = 1.0
    for m in range(k + 1, len(teacher.ids_S)):
        at, row = teacher.end_S[m - 1], teacher.row_S[m]
        if at >= y:
            return probability
        if teacher.start_S[m] != at or row < 0 or teacher.end_S[m] == at:
            return 0.0
        if teacher.end_S[m] <= y:
            probability *= teacher.realised_P[row]
            continue
        begun = 0.0
        for e in range(teacher.ids_PE.shape[1]):
            weight, v = teacher.weights_PE[row, e], teacher.ids_PE[row, e]
            if weight > 0.0 and _begins(table, v, teacher.text_B, at, y):
                begun += weight
        return probability * begun
    return probability if teacher.end_S[-1] >= y else 0.0


@compiled
def _begins(table: TokenTable, token: int, text_B: np.ndarray, start: int, end: int) -> bool:
    """Whether the token's bytes begin with the text from ``start`` to ``end``."""
    if table.length_V[token] < end - start:
        return False
    for at in range(start, end):  # noqa: SIM110
        if table.bytes_B[table.begin_V[token] + at - start] != text_B[at]:
            return False
    return True


@compiled
def _sort_row(ids_E: np.ndarray, weights_E: np.ndarray, n: int) -> None:
    """Order the first ``n`` by falling weight (quick where they nearly are); those of weight 0 are taken out."""
    for i in range(n):
        for other in range(i, 0, -1):
            before, here = weights_E[other - 1], weights_E[other]
            if before >= here:
                break
            weights_E[other - 1], weights_E[other] = here, before
            ids_E[other - 1], ids_E[other] = ids_E[other], ids_E[other - 1]
    for i in range(n):
        if weights_E[i] <= 0.0:
            ids_E[i], weights_E[i] = 0, 0.0
