import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from trainer.order import PACKING_WINDOW, Shuffle, check_lengths, pack, plan_rows, sorted_rows, split_by_key

LENGTHS = np.random.default_rng(0).integers(3, 40, 500)


SHARDS = np.array([30, 1, 49, 20, 10])


def plan(seed: int = 0, shards_mixed: int = 2, **changes):
    settings = {"global_batch": 8, "epochs": 2.0, "max_steps": None, "pack_tokens": None, **changes}
    return plan_rows(np.arange(10, 110), LENGTHS, SHARDS, Shuffle(seed, shards_mixed), **settings)


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    found = Shuffle(seed=3, shards_mixed=2).samples(np.arange(1, 9), np.array([2, 3, 4]), epoch=1)
    assert found.tolist() == [1, 8, 6, 5, 7, 3, 4, 2]  # pinned: other machines must agree
    orders = {tuple(plan(seed, max_steps=13).samples) for seed in range(4)}
    orders |= {tuple(Shuffle(seed, 2).samples(np.arange(10, 110), SHARDS, epoch=1)) for seed in range(4)}
    assert len(orders) == 8


def test_the_samples_of_a_few_shards_at_a_time_are_mixed() -> None:
    sizes = np.full(40, 25)
    for mixed in (1, 4, 40, 100):
        order = Shuffle(0, mixed).samples(np.arange(1000), sizes, epoch=0)
        assert sorted(order) == list(range(1000))
        shards = order // 25
        groups = [set(shards[start : start + 25 * mixed]) for start in range(0, 1000, 25 * mixed)]
        assert [len(group) for group in groups] == [min(mixed, 40)] * len(groups)
        together = np.mean(np.diff(shards) == 0)
        assert together == pytest.approx(0.96 if mixed == 1 else 1 / min(mixed, 40), abs=0.05), "mixed well"
        first = [min(group) for group in groups]
        assert len(first) == 1 or first != sorted(first), "shards come in random order"


def test_packed_rows_come_from_shards_that_are_read_together() -> None:
    sizes, lengths = np.full(40, 500), np.random.default_rng(2).integers(3, 40, 20_000)
    rows = plan_rows(
        np.arange(20_000), lengths, sizes, Shuffle(0, shards_mixed=1),
        global_batch=1, epochs=1.0, max_steps=None, pack_tokens=128,
    )  # fmt: skip
    assert sorted(rows.samples) == list(range(20_000))
    shards = rows.samples // 500
    open_for_200_rows = [
        len(set(shards[rows.offsets[start] : rows.offsets[start + 200]])) for start in range(0, len(rows) - 200, 200)
    ]
    assert max(open_for_200_rows) <= 2 * (PACKING_WINDOW // 500 + 2), "two windows at most"


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
