import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.piece_walk import Read
from teacher_cache.retarget.pieces import CommonPieces, common_pieces
from teacher_cache.retarget.row_targets import StudentTokens, TeacherTokens, Vocabularies
from teacher_cache.token_table import TokenTable


def found_in(read: Read) -> CommonPieces:
    """A row for each token that is known; every other one predicts the first token, or has no finite value."""
    known = [k for k, logprob in enumerate(read.logprobs) if logprob is not None]
    row_of = {k: p for p, k in enumerate(known)}
    unknown = [math.nan, -math.inf]
    row_S = [row_of.get(k, -1 if k % 3 == 0 else len(known) + k % 2) for k in range(len(read.teacher))]
    logprob_P = np.array([read.logprobs[k] for k in known] + unknown, np.float32)
    teacher_spans = np.array(read.teacher, np.int64).reshape(-1, 2).T.copy()
    student_spans = np.array(read.student, np.int64).reshape(-1, 2).T.copy()
    stops = sorted(read.teacher_stops)
    no_rows = np.zeros((len(logprob_P), 1))
    teacher = TeacherTokens(
        np.frombuffer(read.text, np.uint8),
        np.arange(len(read.teacher)),
        *teacher_spans,
        np.array(row_S, np.int64),
        no_rows.astype(np.int32),
        no_rows,
        no_rows[:, 0],
    )
    is_stop_J = np.isin(np.arange(len(read.student)), list(read.student_stops))
    student = StudentTokens(np.zeros(len(read.student), np.int64), *student_spans, is_stop_J)
    vocabularies = Vocabularies.of(TokenTable.of(read.spelled), TokenTable.of([b"a"]), stops, -1)
    return common_pieces(teacher, student, vocabularies, logprob_P)


def check(read: Read) -> dict[int, tuple[int, float]]:
    found, wanted = found_in(read), read.pieces()
    assert found.tokens_J.tolist() == [wanted.get(j, (0, 0))[0] for j in range(len(read.student))]
    assert found.logprob_J == pytest.approx([wanted.get(j, (0, 0.0))[1] for j in range(len(read.student))], abs=1e-9)
    return wanted


def spans(borders: set[int], size: int) -> list[tuple[int, int]]:
    at = sorted({0, size} | {border % (size + 1) for border in borders})
    return list(pairwise(at))


borders = st.sets(st.integers(0, 200), max_size=14)
values = st.integers(-(2**12), 0).map(lambda steps: steps / 64)  # exact in float32
OF_TEACHER = ("unknown", "wrong", "wide", "empty", "blank", "gap", "stop")
OF_STUDENT = ("outside", "student_gap", "earlier", "own_stop")
faults = st.lists(st.tuples(st.sampled_from(OF_TEACHER + OF_STUDENT), st.integers(0, 60)), max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \té漢😀ا"), min_size=1, max_size=12).map(str.encode),
    common=borders,
    theirs=borders,
    ours=borders,
    lead=st.booleans(),
    faults=faults,
    logprobs=st.lists(values, min_size=70, max_size=70),
)
def test_pieces_are_those_of_a_walk_over_the_bytes(
    text: bytes,
    common: set[int],
    theirs: set[int],
    ours: set[int],
    lead: bool,
    faults: list[tuple[str, int]],
    logprobs: list[float | None],
) -> None:
    """Random tokens on both sides, which may end inside of a character, and what may be wrong with them."""
    size = len(text)
    teacher, student = spans(common | theirs, size), spans(common | ours, size)
    teacher_stops, student_stops = {len(teacher)}, {len(student)}
    teacher, student = [*teacher, (size, size)], [*student, (size, size)]
    if lead:  # a token before the text, on both sides
        teacher, student = [(0, 0), *teacher], [(-1, -1), *student]
        teacher_stops, student_stops = {len(teacher) - 1}, {len(student) - 1}
    logprobs = [None, *logprobs[1:]]
    spelled = [text[start:end] for start, end in teacher]
    for fault, where in faults:
        k, j = where % len(teacher), where % len(student)
        start, end = teacher[k]
        if fault == "unknown":
            logprobs[k] = None
        elif fault == "wrong":
            spelled[k] = b"\xff" * (end - start)
        elif fault == "wide" and k + 1 < len(teacher):  # both stand for the bytes of both: a character that was split
            teacher[k] = teacher[k + 1] = (start, max(end, teacher[k + 1][1]))
            if where % 2:
                spelled[k] = text[start : teacher[k][1]]
        elif fault == "empty":
            teacher[k] = (start, start)
        elif fault == "blank":
            spelled[k] = b" " + spelled[k]
        elif fault == "gap" and end - start > 1:
            teacher[k] = (start, end - 1)
            spelled[k] = text[start : end - 1]
        elif fault == "stop":
            teacher_stops.add(k)
        elif fault == "outside":
            student[j] = (-1, -1)
            student_stops.discard(j)
        elif fault == "student_gap" and student[j][1] - student[j][0] > 1:
            student[j] = (student[j][0] + 1, student[j][1])
        elif fault == "earlier" and student[j][0] >= 2:
            student[j] = (student[j][0] - 2, student[j][1] - 2 * int(j in student_stops))
        elif fault == "own_stop" and student[j][0] >= 0:
            student_stops.add(j)
    check(Read(text, teacher, spelled, logprobs[: len(teacher)], teacher_stops, student, student_stops))


TEXT = b"the cats sat"
THEIRS = [(0, 3), (3, 7), (7, 8), (8, 12), (12, 12)]  # the| cat|s| sat|stop
OURS = [(-1, -1), (0, 2), (2, 3), (3, 5), (5, 8), (8, 12), (12, 12)]  # before|th|e| c|ats| sat|stop
LOGPROBS: list[float | None] = [None, -0.5, -0.25, -2.0, -1.0]


def by_hand(**changes: object) -> Read:
    spelled = [TEXT[start:end] for start, end in THEIRS]
    parts = {"text": TEXT, "teacher": THEIRS, "spelled": spelled, "logprobs": LOGPROBS, "teacher_stops": {4}}
    return Read(**{**parts, "student": OURS, "student_stops": {6}, **changes})


def test_by_hand() -> None:
    found = found_in(by_hand())
    # "the" has no row; " cats" is two tokens on both sides; " sat" one; the stop token one
    assert found.tokens_J.tolist() == [0, 0, 0, 0, 2, 1, 1]
    assert found.logprob_J.tolist() == [0, 0, 0, 0, -0.75, -2.0, -1.0]
    assert (found.tokens_J.dtype, found.logprob_J.dtype) == (np.int32, np.float64)
    assert check(by_hand()) == {4: (2, -0.75), 5: (1, -2.0), 6: (1, -1.0)}


def test_the_first_token_of_the_student_is_in_no_piece() -> None:
    read = by_hand(student=OURS[1:], student_stops={5}, logprobs=[-1.0, *LOGPROBS[1:]])
    assert found_in(read).tokens_J.tolist() == [0, 0, 0, 2, 1, 1]
    assert found_in(by_hand(logprobs=[-1.0, *LOGPROBS[1:]])).tokens_J.tolist() == [0, 0, 2, 0, 2, 1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": [None, -0.5, None, -2.0, -1.0]},
        {"spelled": [b"the", b" cat", b"z", b" sat", b""]},
        {"teacher": [(0, 3), (3, 8), (3, 8), (8, 12), (12, 12)]},
    ],
    ids=["a token without a row", "other bytes than the text", "a split character"],
)
def test_a_piece_needs_every_one_of_its_tokens(changes: dict[str, object]) -> None:
    assert found_in(by_hand(**changes)).tokens_J.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_a_piece_ends_where_the_student_leaves_out_a_byte() -> None:
    left_out = [*OURS[:3], (3, 4), *OURS[4:]]
    assert found_in(by_hand(student=left_out)).tokens_J.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_a_token_that_takes_in_another_is_in_no_piece() -> None:
    teacher = [THEIRS[0], (3, 8), (7, 8), *THEIRS[3:]]
    read = by_hand(teacher=teacher, spelled=[b"the", b" cats", b"s", b" sat", b""])
    assert found_in(read).tokens_J.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert check(read) == {5: (1, -2.0), 6: (1, -1.0)}


def test_a_stop_token_needs_one_of_the_teacher_at_its_byte() -> None:
    assert found_in(by_hand(teacher_stops=set())).tokens_J[6] == 0
    cut_short = [*OURS[:-1], (11, 11)]
    assert found_in(by_hand(student=cut_short)).tokens_J[6] == 0


def test_a_stop_token_before_the_end_of_what_was_read() -> None:
    """Blanks after a reply may be laid over each other, but the turn ends before them."""
    teacher = [*THEIRS[:3], (8, 8), (8, 12)]
    read = by_hand(teacher=teacher, spelled=[*by_hand().spelled[:3], b"", b" sat"], teacher_stops={3})
    assert check(Read(**{**vars(read), "student": [*OURS[:-1], (8, 8)]}))[6] == (1, -2.0)


def test_a_stop_token_with_a_text_of_its_own() -> None:
    """In a chat the teacher's is part of the rendered text, the student's has no width there."""
    text = TEXT + b"<end>"
    teacher = [*THEIRS[:-1], (12, 17)]
    read = by_hand(text=text, teacher=teacher, spelled=[text[a:b] for a, b in teacher[:-1]] + [b""])
    assert check(read)[6] == (1, -1.0)
