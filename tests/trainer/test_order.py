import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from trainer.order import check_lengths, pack, permutation, plan_rows, sorted_rows, split_by_key

LENGTHS = np.random.default_rng(0).integers(3, 40, 500)


def plan(**changes):
    settings = {"seed": 0, "global_batch": 8, "epochs": 2.0, "max_steps": None, "pack_tokens": None, **changes}
    return plan_rows(np.arange(10, 110), LENGTHS, **settings)


def test_permutation_is_a_pure_function_of_seed_and_epoch() -> None:
    assert permutation(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]  # pinned: other machines must agree
    different = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(different) == 9


def test_every_epoch_holds_each_sample_once() -> None:
    rows = plan(global_batch=10)
    assert len(rows) == 200
    samples = [rows.row(r).tolist() for r in range(200)]
    for epoch in (samples[:100], samples[100:]):
        assert sorted(epoch) == [[i] for i in range(10, 110)]
    assert samples[:100] != samples[100:]


def test_last_batch_is_filled_from_the_next_epoch() -> None:
    rows = plan(epochs=1.0, global_batch=8)
    assert len(rows) == 104
    assert rows.epoch(104) == pytest.approx(1.04)


def test_fractions_of_epochs() -> None:
    assert len(plan(epochs=0.5, global_batch=10)) == 50
    assert len(plan(epochs=1.25, global_batch=5)) == 125


def test_max_steps_wins_over_epochs_and_longer_plans_start_alike() -> None:
    short, long = plan(max_steps=3), plan(max_steps=40)
    assert (len(short), len(long)) == (24, 320)
    assert [short.row(r).tolist() for r in range(24)] == [long.row(r).tolist() for r in range(24)]


def test_packed_epochs_hold_each_sample_once_and_fit() -> None:
    rows = plan(pack_tokens=64, global_batch=1, epochs=1.0)
    samples = np.concatenate([rows.row(r) for r in range(len(rows))])
    assert sorted(samples.tolist()) == list(range(10, 110))
    sizes = [int(LENGTHS[rows.row(r)].sum()) for r in range(len(rows))]
    assert max(sizes) <= 64
    assert rows.num_tokens(LENGTHS, 0, len(rows)) == sum(sizes) == LENGTHS[10:110].sum()
    assert np.corrcoef(sizes, np.arange(len(sizes)))[0, 1] < 0.5  # rows are not sorted by how full they are


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 200))
def test_packing_fits_and_loses_nothing(lengths: list[int], capacity: int) -> None:
    rows = pack(np.array(lengths), capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    # any two rows together are fuller than one: else best fit would have merged them
    sizes = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) < 2 or sizes[0] + sizes[1] > capacity


def test_packing_leaves_little_padding() -> None:
    lengths = np.random.default_rng(1).integers(20, 600, 4000)
    assert lengths.sum() / (len(pack(lengths, 2048)) * 2048) > 0.98


def test_split_depends_on_the_key_alone() -> None:
    keys = [f"{i:08x}" for i in range(2000)]
    train, held_out = split_by_key(keys, 0.1)
    assert sorted([*train, *held_out]) == list(range(2000))
    assert 140 < len(held_out) < 260
    _, shuffled = split_by_key(keys[::-1][:1000], 0.1)
    assert {keys[::-1][i] for i in shuffled} == {keys[i] for i in held_out if i >= 1000}
    assert len(split_by_key(keys, 0.0)[1]) == 0
    assert set(held_out) <= set(split_by_key(keys, 0.2)[1])


def test_sorted_rows_hold_each_sample_shortest_first() -> None:
    rows = sorted_rows(np.array([5, 7, 9]), np.array([0] * 5 + [30, 0, 10, 0, 20]))
    assert [rows.row(r).tolist() for r in range(3)] == [[7], [9], [5]]


def test_sample_longer_than_a_row() -> None:
    with pytest.raises(UserError, match=r"^cache: its longest sample has 9 tokens, more than data.pack_tokens = 8"):
        check_lengths(np.array([3, 9, 99]), np.array([0, 1]), 8, where="cache")
