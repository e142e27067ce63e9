from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.byte_walk import Walk
from teacher_cache.retarget.row_targets import (
    TAUGHT,
    Align,
    Kind,
    RowTargets,
    StudentTokens,
    TeacherTokens,
    Vocabularies,
    row_targets,
)
from teacher_cache.token_table import TokenTable

BYTES = [bytes([byte]) for byte in range(256)]


@dataclass
class Case:
    walk: Walk
    student_tokens: list[tuple[int, int, int, bool]]  # id, start, end, whether it is the stop token

    def targets(self, align: Align = Align.ALL) -> RowTargets:
        walk = self.walk
        n_entries = max((len(row) for row in walk.rows.values()), default=1)
        predicted = sorted(walk.rows)
        ids, weights = np.zeros((len(predicted), n_entries), np.int32), np.zeros((len(predicted), n_entries))
        for p, k in enumerate(predicted):
            ids[p, : len(walk.rows[k])] = list(walk.rows[k])
            weights[p, : len(walk.rows[k])] = list(walk.rows[k].values())
        row_of = {k: p for p, k in enumerate(predicted)}
        token, start, end = np.array(walk.tokens, np.int64).reshape(-1, 3).T.copy()
        own = np.array([each[:3] for each in self.student_tokens], np.int64).reshape(-1, 3).T.copy()
        return row_targets(
            TeacherTokens(
                np.frombuffer(walk.text, np.uint8),
                token,
                start,
                end,
                np.array([row_of.get(k, -1) for k in range(len(token))]),
                ids,
                weights,
                np.array([walk.realised[k] for k in predicted]),
            ),
            StudentTokens(*own, np.array([each[3] for each in self.student_tokens], bool)),
            self.vocabularies(align),
            align,
        )

    def vocabularies(self, align: Align) -> Vocabularies:
        walk, in_classes = self.walk, align == Align.CLASSES
        tables = TokenTable.of(walk.teacher), TokenTable.of(walk.student)
        return Vocabularies.of(*tables, list(walk.stops), walk.student_stop, in_classes=in_classes)

    def check(self, align: Align = Align.ALL) -> None:
        found = self.targets(align)
        for j, (token, x, y, is_stop) in enumerate(self.student_tokens):
            define = self.walk.class_target if align == Align.CLASSES else self.walk.target
            wanted = define(token, x, y, is_stop)
            assert (wanted is not None) is (found.kind_J[j] in TAUGHT), (j, Kind(found.kind_J[j]))
            if align != Align.CLASSES:
                assert found.whole_row_J[j] == (-1 if wanted is None else self.whole_row(x, y, is_stop))
            if wanted is None:
                assert not found.weights_JE[j].any()
                continue
            weights, rest = wanted
            given = {int(s): w for s, w in zip(found.ids_JE[j], found.weights_JE[j], strict=True) if w > 0}
            assert given == pytest.approx(weights, abs=1e-9)
            assert found.rest_J[j] == pytest.approx(rest, abs=1e-9)
            assert (found.weights_JE[j] >= 0).all()
            assert (np.diff(found.weights_JE[j]) <= 0).all()
            assert found.weights_JE[j].sum() + found.rest_J[j] == pytest.approx(1, abs=1e-9)

    def whole_row(self, x: int, y: int, is_stop: bool) -> int:
        """The row about the teacher token that begins at ``x``; -1 if it was read in part, or is crossed."""
        k = self.walk.covering(x, is_stop)
        assert k is not None
        taken, start, end = self.walk.tokens[k]
        spelled = is_stop or (x == start and len(self.walk.teacher[taken]) == end - start)
        return sorted(self.walk.rows).index(k) if spelled and y <= end else -1


def cut(text: bytes, vocabulary: list[bytes], length: int) -> list[tuple[int, int, int]]:
    """Tokens that spell ``text``: of each place the longest one of at most ``length`` bytes."""
    tokens, at = [], 0
    while at < len(text):
        width, found = max(
            (len(t), i) for i, t in enumerate(vocabulary) if t and text.startswith(t, at) and len(t) <= length
        )
        tokens.append((found, at, at + width))
        at += width
    return tokens


def made(text: bytes, more_teacher: list[bytes], more_student: list[bytes], seed: int, length: int = 9) -> Case:
    """Random rows over two vocabularies of all bytes and some longer tokens, and a stop token at the end."""
    rng = np.random.default_rng(seed)
    teacher = [b"", *BYTES, *dict.fromkeys(more_teacher)]
    student = [*BYTES, *dict.fromkeys(more_student), b""]
    tokens = [*cut(text, teacher, length), (0, len(text), len(text))]
    rows, realised = {}, {}
    for k in range(1, len(tokens)):
        if rng.random() < 0.1:
            continue  # this row is not stored
        likely = [tokens[k][0]] * int(rng.random() < 0.8) + list(rng.integers(0, len(teacher), 6))
        likely += [i for i, token in enumerate(teacher) if token and text.startswith(token, tokens[k][1])]
        ids = list(dict.fromkeys(int(i) for i in likely))
        rows[k] = dict(zip(ids, (rng.dirichlet(np.ones(len(ids) + 1))[:-1]).tolist(), strict=True))
        realised[k] = rows[k].get(tokens[k][0], 1e-3)
    walk = Walk(teacher, student, frozenset({0}), len(student) - 1, text, tokens, rows, realised)
    own = [(*token, False) for token in cut(text, student, length)]
    return Case(walk, [*own, (len(student) - 1, len(text), len(text), True)])


words = st.text(st.sampled_from("ab \t1é漢😀ا"), min_size=1, max_size=4).map(str.encode)
pieces = st.builds(lambda data, a, b: data[min(a, b) : max(a, b)] or data, words, st.integers(0, 6), st.integers(0, 6))


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(words, min_size=1, max_size=6).map(b"".join),
    teacher=st.lists(st.one_of(words, pieces), max_size=12),
    student=st.lists(st.one_of(words, pieces), max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_is_what_a_walk_over_the_bytes_gives(
    text: bytes, teacher: list[bytes], student: list[bytes], seed: int
) -> None:
    """Texts of several scripts; tokens may end inside of a character."""
    case = made(text, teacher, student, seed)
    case.check()
    case.check(Align.CLASSES)
    wanted = [case.walk.common(s) for s in range(len(case.walk.student))]
    assert case.vocabularies(Align.CLASSES).class_V.tolist() == wanted


def by_hand(student_tokens: list[tuple[int, int, int, bool]], rows: dict[int, dict[int, float]]) -> Case:
    teacher = [b"", b"the", b" cat", b" c", b"at", b" ", b"s"]
    student = [b"th", b"e", b" cat", b" ", b"c", b"a", b"t", b"e cat", b"s", b""]
    tokens = [(1, 0, 3), (2, 3, 7), (6, 7, 8), (0, 8, 8)]
    realised = {1: 0.5, 2: 0.25, 3: 0.125}
    return Case(Walk(teacher, student, frozenset({0}), 9, b"the cats", tokens, rows, realised), student_tokens)


ROWS = {1: {2: 0.5, 3: 0.3, 0: 0.1}, 2: {6: 0.25, 0: 0.5}, 3: {0: 0.125, 6: 0.5}}


def test_a_token_at_a_border_has_the_mass_of_all_teacher_tokens_that_begin_with_it() -> None:
    found = by_hand([(2, 3, 7, False)], ROWS).targets()
    # " cat" → " cat"; " c" → " "; the stop token → the stop token
    assert found.ids_JE[0, :3].tolist() == [2, 3, 9]
    assert found.weights_JE[0, :3] == pytest.approx([0.5, 0.3, 0.1])
    assert found.rest_J[0] == pytest.approx(0.1)
    assert found.kind_J[0] == Kind.EQUAL


def test_a_token_inside_is_conditioned_on_the_bytes_before_it() -> None:
    found = by_hand([(4, 4, 5, False)], ROWS).targets()  # "c" after " "
    # of " cat" and " c", which go on after " ", both begin with "c": 0.8 / 0.8
    assert (found.ids_JE[0, 0], found.weights_JE[0, 0]) == (4, pytest.approx(1.0))
    assert found.kind_J[0] == Kind.INSIDE


def test_a_token_that_crosses_has_the_probability_of_the_chain() -> None:
    # the student's "s" cut as "ts" would cross; here "e cat" crosses from "the" into " cat", whose row is stored
    case = by_hand([(7, 2, 7, False)], {0: {1: 0.4, 4: 0.1}, **ROWS})
    case.walk.realised[0] = 0.4
    found = case.targets()
    assert found.crosses_J[0]
    # given "th", "the" alone goes on: φ("e") = "e" has 1, of which 0.5 moves to "e cat"
    assert dict(zip(found.ids_JE[0, :2].tolist(), found.weights_JE[0, :2].tolist(), strict=True)) == {
        1: pytest.approx(0.5),
        7: pytest.approx(0.5),
    }


@pytest.mark.parametrize(
    ("align", "taught"),
    [(Align.STRICT, [True, False, False]), (Align.BORDER, [True, True, False]), (Align.ALL, [True, True, True])],
)
def test_arms(align: Align, taught: list[bool]) -> None:
    case = by_hand([(2, 3, 7, False), (3, 3, 4, False), (4, 4, 5, False)], ROWS)
    case.student_tokens[1] = (2, 3, 6, False)  # begins at the border, ends before it
    assert (case.targets(align).weights_JE.sum(axis=1) > 0).tolist() == taught


def test_blanks_are_not_taught() -> None:
    found = by_hand([(3, 3, 4, False)], ROWS).targets()
    assert found.kind_J[0] == Kind.BLANK
    assert not found.weights_JE.any()


def test_the_stop_token_is_taught_where_the_teacher_stopped_and_nowhere_else() -> None:
    found = by_hand([(9, 8, 8, True), (9, 7, 7, True)], ROWS).targets()
    assert found.kind_J.tolist() == [Kind.STOP, Kind.NO_ROW]
    assert (found.ids_JE[0, 0], found.weights_JE[0, 0]) == (8, pytest.approx(0.5))
    assert found.weights_JE[0, 1] == pytest.approx(0.125)


def test_tokens_whose_bytes_are_not_those_of_the_text_are_left_out() -> None:
    case = by_hand([(4, 4, 5, False)], ROWS)
    case.walk.tokens[1] = (3, 3, 7)  # " c" cannot cover four bytes
    assert case.targets().kind_J[0] == Kind.UNCLEAR


def test_a_leading_blank_that_the_text_does_not_have_is_no_part_of_the_token() -> None:
    """SentencePiece puts a blank before the text."""
    teacher, student = [b" the", b" a", b"x"], [b"the", b"a", b"t"]
    walk = Walk(
        teacher, student, frozenset(), -1, b"xthe", [(2, 0, 1), (0, 1, 4)], {1: {0: 0.6, 1: 0.2, 2: 0.2}}, {1: 0.6}
    )
    found = Case(walk, [(0, 1, 4, False)]).targets()
    assert found.kind_J[0] == Kind.EQUAL
    assert found.weights_JE[0, :2] == pytest.approx([0.75, 0.25])  # given the blank
    assert found.whole_row_J[0] == -1


def test_a_class_has_the_mass_of_all_teacher_tokens_in_it_wherever_the_students_token_ends() -> None:
    teacher = [b"", b"def", b"ine", b"de", b"x"]
    student = [b"define", b"def", b"de", b"ine", b"x", b"in"]
    rows = {1: {1: 0.6, 3: 0.25, 4: 0.1}, 2: {2: 0.75, 0: 0.25}}
    walk = Walk(teacher, student, frozenset({0}), -1, b"xdefine", [(4, 0, 1), (1, 1, 4), (2, 4, 7)], rows, {1: 0.6})
    walk.realised[2] = 0.75
    case = Case(walk, [(0, 1, 7, False)])
    found = case.targets(Align.CLASSES)
    assert case.vocabularies(Align.CLASSES).class_V.tolist() == [1, 1, 2, 3, 4, 5]
    assert dict(zip(found.ids_JE[0, :3].tolist(), found.weights_JE[0, :3].tolist(), strict=True)) == {
        1: pytest.approx(0.6),  # "def" and "define" together
        2: pytest.approx(0.25),
        4: pytest.approx(0.1),
    }
    assert found.crosses_J[0]
    assert found.whole_row_J[0] == 0


def test_where_the_classes_of_what_was_read_differ_the_row_learns_that_of_the_text() -> None:
    teacher, student = [b"a", b"ab", b"x"], [b"a", b"ab", b"x", b"b"]
    walk = Walk(teacher, student, frozenset(), -1, b"xab", [(2, 0, 1), (1, 1, 3)], {1: {1: 0.5, 0: 0.5}}, {1: 0.5})
    found = Case(walk, [(0, 1, 2, False)]).targets(Align.CLASSES)
    assert (found.ids_JE[0, 0], found.weights_JE[0].tolist()) == (0, [1, 0, 0])
    assert found.rest_J[0] == 0
    assert found.whole_row_J[0] == -1
