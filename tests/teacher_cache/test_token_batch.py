"""Batches of sequences: splitting, selecting and regrouping leave every sequence unchanged."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from support.synthetic import token_sample
from teacher_cache.plan import numbered_parts
from teacher_cache.records import TokenSample
from teacher_cache.token_batch import TokenBatch, in_parts, joined

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def samples_of(lengths: list[int]) -> list[TokenSample]:
    return [token_sample(range(i, i + n), layer=f"l{i % 3}", source_id=f"é#{i}") for i, n in enumerate(lengths)]


def assert_same(found: list[TokenSample], wanted: list[TokenSample]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), value, err_msg=name)


@given(LENGTHS, st.data())
def test_a_batch_holds_the_samples_it_was_made_of(lengths: list[int], data: st.DataObject) -> None:
    samples = samples_of(lengths)
    batch = TokenBatch.of(samples)
    assert_same(list(batch.samples()), samples)
    keep = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    chosen = batch.chosen(np.array(keep))
    assert_same(list(chosen.samples()), [sample for sample, kept in zip(samples, keep, strict=True) if kept])
    cut = data.draw(st.integers(0, len(lengths)))
    parts = [batch.part(0, cut), batch.part(cut, len(lengths))]
    assert_same([sample for part in parts for sample in part.samples()], samples)
    assert_same(list(joined(parts).samples()), samples)


@given(LENGTHS, st.integers(1, 20), st.integers(1, 7))
def test_parts_are_those_of_samples_taken_one_by_one(lengths: list[int], least_tokens: int, size: int) -> None:
    samples = samples_of(lengths)
    batches = [TokenBatch.of(samples[first : first + size]) for first in range(0, len(samples), size)]
    found = [(number, s) for number, part in enumerate(in_parts(batches, least_tokens)) for s in part.samples()]
    wanted = list(numbered_parts(samples, least_tokens))
    assert [number for number, _ in found] == [number for number, _ in wanted]
    assert_same([sample for _, sample in found], [sample for _, sample in wanted])
