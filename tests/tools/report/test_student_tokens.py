"""Tokens of two tokenizers over one text: cut at common borders, each token once, with what its row learns."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from support.byte_student import write_byte_student
from support.golden import WITH_CHATS
from support.models import tiny_tokenizer
from support.worded import worded_sample
from teacher_cache.retarget.retargeter import Retargeted
from teacher_cache.retarget.row_targets import TAUGHT, Kind, StudentTokens
from teacher_cache.shards.reader import CacheReader
from tools.looking.align import KIND_NAMES, Aligner, measure_alignment
from tools.report import student_tokens
from tools.report.student_tokens import pieces, shares, viewer_sample, viewer_samples


@pytest.fixture(scope="module")
def aligners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Aligner]:
    """The golden cache beside its own tokenizer and one of bytes."""
    folder = tmp_path_factory.mktemp("students")
    tiny_tokenizer().save_pretrained(folder / "own")
    students = {"own": str(folder / "own"), "bytes": write_byte_student(folder / "bytes")}
    reader = CacheReader(str(WITH_CHATS), ("tokens", "logits"))
    return {name: Aligner(reader, student) for name, student in students.items()}


def spans(*ends: int, stop: int | None = None, own: int = 0) -> Any:
    """A student's tokens: ``own`` of its template, some that end at these bytes, and a stop token."""
    starts = [-1] * own + [0, *ends[:-1]] + ([] if stop is None else [stop])
    found = [-1] * own + list(ends) + ([] if stop is None else [stop])
    n = len(found)
    tokens = StudentTokens(np.arange(n), np.array(starts), np.array(found), np.arange(n) == (n - 1 if stop else n))
    return cast(Retargeted, SimpleNamespace(text=SimpleNamespace(tokens=tokens, ids_J=tokens.ids_J)))


@pytest.mark.parametrize(
    ("words", "student", "wanted"),
    [
        (["ab", "cd"], spans(2, 4), [([0], [0]), ([1], [1])]),
        (["ab", "cd"], spans(4), [([0, 1], [0])]),
        (["abcd"], spans(1, 3, 4), [([0], [0, 1, 2])]),
        (["abc", "d"], spans(1, 4), [([0, 1], [0, 1])]),
        (["ab", "cd"], spans(2, 4, own=2), [([], [0]), ([], [1]), ([0], [2]), ([1], [3])]),
        (["ab", "cd", "<|>"], spans(2, 4, stop=4), [([0], [0]), ([1], [1]), ([2], [2])]),
        (["ab", "cd", ""], spans(2, 4, stop=4), [([0], [0]), ([1], [1]), ([2], [2])]),
        (["ab", "cd", "<|>"], spans(2, 4), [([0], [0]), ([1], [1]), ([2], [])]),
    ],
)
def test_pieces_end_where_both_have_a_border(words: list[str], student: Any, wanted: list[Any]) -> None:
    found = pieces(worded_sample(words), student, 0, len(student.text.ids_J))
    assert [(piece.teacher, piece.student) for piece in found] == wanted


def test_a_window_shows_the_teachers_tokens_over_it() -> None:
    sample, student = worded_sample(["ab", "cd", "ef", "gh"]), spans(1, 2, 4, 5, 8)
    found = pieces(sample, student, 1, 4)
    assert [(piece.teacher, piece.student) for piece in found] == [([0], [1]), ([1], [2]), ([2], [3])]


@pytest.mark.parametrize("student", ["own", "bytes"])
def test_every_token_is_in_one_piece_over_the_same_bytes(aligners: dict[str, Aligner], student: str) -> None:
    shared = 0
    for number in range(79):
        sample, found = aligners[student].read(number)
        assert found is not None
        made = pieces(sample, found, 0, len(found.text.ids_J))
        assert list(itertools.chain.from_iterable(p.teacher for p in made)) == list(range(len(sample.input_ids)))
        assert list(itertools.chain.from_iterable(p.student for p in made)) == list(range(len(found.text.ids_J)))
        tokens = found.text.tokens
        for teacher, own in made:
            if teacher and own and not tokens.is_stop_J[own].any():
                assert sample.byte_start[teacher[0]] == tokens.start_J[own[0]]
                assert sample.byte_end[teacher[-1]] == tokens.end_J[own[-1]]
                shared += 1
                inside = set(sample.byte_end[teacher[:-1]].tolist()) & set(tokens.end_J[own[:-1]].tolist())
                assert not inside, "a common border inside of a piece"
    assert shared > 500


def test_what_is_shown_is_what_is_learned(aligners: dict[str, Aligner]) -> None:
    """Of a chat: texts, ids, kinds and weights; the template's own tokens have no teacher token over them."""
    sample, found = aligners["bytes"].read(76)
    assert found is not None
    shown = viewer_sample(sample, found, student_tokens.vocabulary_table(aligners["bytes"].tokenizer))
    tokens = [token for piece in shown["pieces"] for token in piece["student"]]
    assert "".join(token["text"] for token in tokens) == "[user]1 + 1?<end>[assistant]2.<end>"
    assert shown["tokens"] == [len(sample.input_ids), len(tokens)]
    learned = np.flatnonzero(found.text.loss_mask_J) + 1
    assert [j for j, token in enumerate(tokens) if "learned" not in token] == learned.tolist() == [24, 25, 26]
    names = list(KIND_NAMES)
    for j in learned.tolist():
        token, kind = tokens[j], Kind(int(found.targets.kind_J[j]))
        assert names[token["kind"]] is kind
        assert kind in TAUGHT
        weights = found.targets.weights_JE[j]
        assert [p for _, _, p in token["best"]] == np.rint(1e4 * np.sort(weights)[::-1][: len(token["best"])]).tolist()
        assert token["rest"] == pytest.approx(1e4 - sum(p for _, _, p in token["best"]), abs=3)
        for index, spelled, _ in token["best"]:
            assert aligners["bytes"].tokenizer.decode([index]) in (spelled, "\ufffd")
    last = shown["pieces"][-2]
    assert [[token["text"] for token in last[side]] for side in ("teacher", "student")] == [["<|im_end|>"], ["<end>"]]
    assert KIND_NAMES[names[last["student"][0]["kind"]]] == "the end of a text or turn"
    prompt = "".join(token["text"] for piece in shown["pieces"] if not piece["teacher"] for token in piece["student"])
    assert prompt == "[user]1 + 1?<end>[assistant]"


def test_shares_are_those_of_align(aligners: dict[str, Aligner]) -> None:
    reader = CacheReader(str(WITH_CHATS), ("tokens", "logits"))
    alignment = measure_alignment(reader, aligners["own"], None)
    found = shares(alignment)
    assert [arm["share"] for arm in found["arms"]] == ["100.0%"] * 3
    assert {kind["name"] for kind in found["kinds"]} == set(KIND_NAMES.values())
    counts = {kind["colour"]: kind["count"] for kind in found["kinds"]}
    assert counts["stop"] == "4"
    assert found["teacher_tokens"] == found["student_tokens"] == f"{alignment.teacher_tokens:,}"


def test_at_most_a_few_samples_and_tokens_are_shown(
    aligners: dict[str, Aligner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(student_tokens, "MOST_STUDENT_TOKENS", 7)
    found = viewer_samples(aligners["bytes"], list(range(79)))
    assert len(found) == student_tokens.SHOWN_SAMPLES
    for sample in found:
        assert sample["shown"] == sum(len(piece["student"]) for piece in sample["pieces"]) <= 7
        assert sum(len(piece["teacher"]) for piece in sample["pieces"]) <= 8
