"""``verify`` says in one line a shard where rows come from that contradict their tokens."""

from dataclasses import replace
from pathlib import Path

import pytest

from support.displaced import DISPLACED, shifted, swapped
from support.synthetic import random_shards, write_cache
from tools.checking.verify import verify

VOCABULARY = 61


@pytest.mark.parametrize("kind", DISPLACED)
def test_one_line_per_shard_explains_the_contradictions(tmp_path: Path, kind: str) -> None:
    shards = random_shards([[30] * 8, [30] * 6], VOCABULARY, seed=3)
    write_cache(str(tmp_path), DISPLACED[kind](shards), VOCABULARY)
    problems = verify(str(tmp_path)).problems
    assert len(problems) == 2
    for number, (problem, n) in enumerate(zip(problems, (8, 6), strict=True)):
        assert problem.startswith(f"shard-{number:06d}.logits.tar: rows are {kind}")
        assert f"(in {n} samples, first {shards[number][0][0].key})" in problem
    if "swapped" in kind:
        assert f"those of sample {shards[0][0][0].key} belong to sample {shards[0][1][0].key}" in problems[0]


def test_shifted_rows_among_those_that_count(tmp_path: Path) -> None:
    """With gaps, as prompts leave them."""
    shards = random_shards([[60] * 4], VOCABULARY, seed=5, counting=0.6)
    write_cache(str(tmp_path), shifted(shards), VOCABULARY)
    (problem,) = verify(str(tmp_path)).problems
    assert "rows are shifted by one: each is the teacher's of one token before (in 4 samples" in problem


def test_swapped_samples_of_different_lengths(tmp_path: Path) -> None:
    """The longer one's rows do not fit the shorter one's tokens; where they are is said nevertheless."""
    shards = random_shards([[40, 12]], VOCABULARY, seed=8)
    write_cache(
        str(tmp_path), [[(t, replace(rows, num_tokens=len(t.input_ids))) for t, rows in swapped(shards)[0]]], 61
    )
    problems = verify(str(tmp_path)).problems
    long, short = (tokens.key for tokens, _ in shards[0])
    assert any(f"those of sample {long} belong to sample {short}" in problem for problem in problems)


def test_unexplained_problems_are_one_line_per_kind(tmp_path: Path) -> None:
    shards = random_shards([[30] * 8], VOCABULARY, seed=9)
    wrong = [[(t, replace(rows, next_logprob=0 * rows.next_logprob - 0.01)) for t, rows in shards[0]]]
    write_cache(str(tmp_path), wrong, VOCABULARY)
    problems = verify(str(tmp_path)).problems
    assert len(problems) == 2
    assert all(f"sample {shards[0][0][0].key}: row " in problem for problem in problems)
    assert all(problem.endswith("and in 7 more samples") for problem in problems)
