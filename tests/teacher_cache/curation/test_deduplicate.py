"""Near duplicates against their exact similarities."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from support.records_to_judge import chat_record, opened, text_record
from teacher_cache.curation.curation_step import GlobalStep, Table
from teacher_cache.curation.deduplicate import (
    BANDS,
    HASHES,
    NEAR,
    PIECE,
    SAME,
    STAYS,
    band_hashes,
    first_and_previous,
    near_duplicates,
    sketches,
)
from teacher_cache.curation.record import Record
from teacher_cache.curation.shingles import N

WORDS = [f"w{number}" for number in range(3000)]


def text_of(rng: random.Random, words: int = 120) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def changed(text: str, rng: random.Random, count: int) -> str:
    words = text.split()
    for at in rng.sample(range(len(words)), count):
        words[at] = "changed" + str(rng.randrange(10**6))
    return " ".join(words)


def jaccard(one: str, other: str) -> float:
    first, second = (
        {tuple(text.split()[at : at + N]) for at in range(len(text.split()) - N + 1)} for text in (one, other)
    )
    return len(first & second) / len(first | second)


def test_planted_near_duplicates_leave_and_others_stay() -> None:
    """The bar: recall of 95 % at a Jaccard similarity of 0.8 and more, 1 % of others."""
    rng = random.Random(0)
    originals = [text_of(rng) for _ in range(900)]
    copies = [changed(text, rng, rng.randint(0, 12)) for text in originals]
    similar = np.array([jaccard(*pair) for pair in zip(originals, copies, strict=True)])
    code_N, leader_N = near_duplicates(sketches(originals + copies, 0), 0.72)
    assert not code_N[:900].any()
    left = code_N[900:] > STAYS
    assert (similar >= 0.8).sum() > 200 < (similar < 0.65).sum()
    assert left[similar >= 0.8].mean() >= 0.95
    assert left[similar < 0.65].mean() <= 0.01
    assert (leader_N[900:][left] == np.flatnonzero(left)).all()
    assert (code_N[900:][similar == 1] == SAME).all()
    assert (code_N[900:][left & (similar < 1)] == NEAR).all()


def test_what_leaves_is_near_one_that_stays_not_the_end_of_a_chain() -> None:
    rng = random.Random(1)
    chain = [text_of(rng)]
    for _ in range(40):
        chain.append(changed(chain[-1], rng, 2))
    code_N, leader_N = near_duplicates(sketches(chain, 0), 0.72)
    assert min(jaccard(*pair) for pair in pairwise(chain)) > 0.8
    stay = np.flatnonzero(code_N == STAYS)
    assert 4 < len(stay) < 25
    assert {*leader_N.tolist()} == {*stay.tolist()}
    assert all(jaccard(chain[at], chain[leader]) > 0.6 for at, leader in enumerate(leader_N))


def test_the_first_of_many_stays() -> None:
    rng = random.Random(2)
    text, other = text_of(rng), text_of(rng)
    texts = [other, *([text] * 5), changed(text, rng, 1), text]
    code_N, leader_N = near_duplicates(sketches(texts, 0), 0.72)
    assert code_N.tolist() == [STAYS, STAYS, *([SAME] * 4), NEAR, SAME]
    assert leader_N.tolist() == [0, *([1] * 7)]


def test_short_texts_are_compared_as_a_whole() -> None:
    texts = ["Yes.", "yes", "No.", "I do not know", "I do not care", "", "!", "I do NOT know!!"]
    code_N, _ = near_duplicates(sketches(texts, 0), 0.72)
    assert code_N.tolist() == [STAYS, SAME, STAYS, STAYS, STAYS, STAYS, STAYS, SAME]


def test_candidates_are_the_first_and_the_previous_of_a_band() -> None:
    first, previous = first_and_previous(np.array([5, 7, 5, 5, 9, 7], np.uint64))
    assert first.tolist() == [0, 1, 0, 0, 4, 1]
    assert previous.tolist() == [0, 1, 0, 2, 4, 1]


def test_bands_have_equal_hashes_where_their_rows_are_equal() -> None:
    rng = np.random.default_rng(0)
    signature_N = rng.integers(0, 3, (500, HASHES), np.uint32)
    hash_BN = band_hashes(signature_N)
    assert hash_BN.shape == (BANDS, 500)
    for band in range(BANDS):
        rows = [tuple(row) for row in signature_N[:, 8 * band : 8 * band + 8].tolist()]
        assert len({*zip(rows, hash_BN[band].tolist(), strict=True)}) == len({*rows}) == len({*hash_BN[band].tolist()})


def test_memory_mapped_sketches_of_several_pieces_give_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sketch_N = rng.integers(0, 2**32, (2 * PIECE + 3, 2 + HASHES), np.uint32)
    sketch_N[PIECE + 7] = sketch_N[3]
    sketch_N[2 * PIECE + 1, :100] = sketch_N[PIECE + 7, :100]
    sketch_N.tofile(tmp_path / "sketches")
    mapped = np.memmap(tmp_path / "sketches", np.uint32, "r", shape=sketch_N.shape)
    for each in (sketch_N, mapped):
        code_N, leader_N = near_duplicates(each, 0.72, str(tmp_path))
        assert {at: int(code_N[at]) for at in np.flatnonzero(code_N)} == {PIECE + 7: SAME, 2 * PIECE + 1: SAME}
        assert leader_N[2 * PIECE + 1] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["sketches"]


@pytest.mark.parametrize(("of", "left"), [("all", [0, 0, 0]), ("prompt", [0, 1, 0]), ("reply", [0, 0, 1])])
def test_the_text_that_is_compared(of: str, left: list[int]) -> None:
    rng = random.Random(3)
    one, two, three = (text_of(rng) for _ in range(3))
    records = [chat_record(one, two), chat_record(one, three), chat_record(three, two)]
    step = opened({"step": "deduplicate", "of": of})
    assert isinstance(step, GlobalStep)
    decision = step.decide(step.sketch(records), table_of(records))
    assert decision.code_N.tolist() == left


def table_of(records: list[Record]) -> Table:
    zeros = np.zeros(len(records), np.int64)
    return Table(np.arange(len(records)), zeros, zeros, zeros, ("base",))


def test_a_text_without_letters_is_no_duplicate_of_another() -> None:
    step = opened({"step": "deduplicate"})
    assert isinstance(step, GlobalStep)
    records = [text_record(text) for text in ("1 + 1", "...", "???", "...")]
    assert step.decide(step.sketch(records), table_of(records)).code_N.tolist() == [0, 0, 0, 1]
