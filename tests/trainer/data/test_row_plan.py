import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.indexed import Indexed
from trainer.data.order import CacheOrder, Shuffle
from trainer.data.row_plan import MAX_WEIGHT, RowPlan, SortedRows, integer_weights, plan_rows
from trainer.data.selection import Selection, Subset


def order(*sizes: int, pack_tokens: int | None = None) -> CacheOrder:
    lengths = np.random.default_rng(sum(sizes)).integers(3, 40, sum(sizes))
    return CacheOrder(Subset(Indexed(sizes, lengths), Selection()), Shuffle(1, shards_mixed=2), pack_tokens)


def planned(orders: list[CacheOrder], weights: list[float] | None = None, **changes: object) -> RowPlan:
    settings = {"global_batch": 8, "epochs": 2.0, "max_steps": None, **changes}
    return plan_rows(orders, weights, **settings)  # type: ignore[arg-type]


def read(plan: RowPlan, start: int = 0, stop: int | None = None) -> list[int]:
    rows = plan.rows(range(start, len(plan) if stop is None else stop))
    return [sample for row in rows for sample in row]


def test_the_last_batch_is_filled_from_the_next_epoch() -> None:
    plan = planned([order(30, 70)], epochs=1.0)
    assert len(plan) == 104
    assert plan.epoch(104) == pytest.approx(1.04)
    assert sorted(read(plan, 0, 100)) == list(range(100))


def test_fractions_of_epochs() -> None:
    assert len(planned([order(30, 70)], epochs=0.5, global_batch=10)) == 50
    assert len(planned([order(30, 70)], epochs=1.25, global_batch=5)) == 125


def test_max_steps_wins_over_epochs_and_longer_plans_start_alike() -> None:
    short, long = (planned([order(30, 70)], max_steps=steps) for steps in (3, 40))
    assert (len(short), len(long)) == (24, 320)
    assert read(short) == read(long, 0, 24)


@pytest.mark.parametrize("pack_tokens", [None, 64])
def test_without_weights_all_caches_end_their_epochs_together(pack_tokens: int | None) -> None:
    orders = [order(20, 13, pack_tokens=pack_tokens), order(50, pack_tokens=pack_tokens), order(9, 8, 7)]
    plan = planned(orders, epochs=1.0, global_batch=1)
    found = read(plan)
    assert sorted(found) == list(range(33 + 50 + 24))
    half = found[: len(found) // 2]
    shares = [np.mean([low <= sample < high for sample in half]) for low, high in ((0, 33), (33, 83), (83, 107))]
    assert shares == pytest.approx([33 / 107, 50 / 107, 24 / 107], abs=0.12)


def test_with_weights_each_cache_has_its_share_and_its_own_epochs() -> None:
    plan = planned([order(40), order(30, 30), order(10)], [60, 25, 15], max_steps=50, global_batch=20)
    rows = read(plan)
    for start in range(0, 1000, 100):
        counts = np.histogram(rows[start : start + 100], bins=[0, 40, 100, 110])[0]
        assert np.abs(counts - [60, 25, 15]).max() <= 2
    for low, high, size in ((0, 40, 40), (40, 100, 60), (100, 110, 10)):
        own = [sample - low for sample in rows if low <= sample < high]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size)), "each sample once an epoch"


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 10**9))
def test_every_row_is_of_one_cache(weights: list[int], start: int) -> None:
    plan = RowPlan([order(5)] * len(weights), 1, weights)
    rows = np.arange(start, start + 100)
    taken = plan.taken(rows)
    assert (taken.sum(axis=0) == rows).all()
    steps = np.diff(taken, axis=1)
    assert ((steps == 0) | (steps == 1)).all()
    shares = np.array(weights)[:, None] * rows / sum(weights)
    assert np.abs(taken - shares).max() <= 1 + len(weights) / 2
    whole = plan.taken(np.array([sum(weights)]))[:, 0]
    assert whole.tolist() == weights, "after as many rows as the weights' sum, each has just its own"


@given(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=5))
def test_weights_as_integers(weights: list[float]) -> None:
    found = integer_weights(weights)
    assert min(found) >= 1
    assert sum(found) <= MAX_WEIGHT + len(found)
    np.testing.assert_allclose(np.array(found) / sum(found), np.array(weights) / sum(weights), atol=1e-6)


def test_small_integer_weights_are_exact() -> None:
    assert integer_weights([60.0, 25.0, 15.0]) == [60, 25, 15]


def test_any_stretch_of_a_mixture_is_found_from_its_places() -> None:
    def make() -> list[CacheOrder]:
        return [order(20, 13, 40, pack_tokens=64), order(50, 3)]

    plan = planned(make(), [1.0, 2.5], max_steps=40)
    rows = plan.rows(range(320))
    for start in (0, 1, 77, 200, 311):
        places = plan.places(start)
        orders = [
            CacheOrder(one.subset, one.shuffle, one.pack_tokens, place)
            for one, place in zip(make(), places, strict=True)
        ]
        resumed = planned(orders, [1.0, 2.5], max_steps=40)
        assert resumed.rows(range(start, start + 9)) == rows[start : start + 9]
        ahead = resumed.ahead(start, 20)
        assert set(sample for row in rows[start : start + 2] for sample in row) <= set(ahead.tolist())


def test_sorted_rows_hold_each_sample_shortest_first_within_a_stretch() -> None:
    rows = SortedRows(np.array([5, 7, 9, 11]), np.array([30, 10, 20, 5]), stretch=3)
    assert rows.rows([0, 1, 2, 3]) == [[7], [9], [5], [11]]
    assert rows.rows([1, 3]) == [[9], [11]]
    assert rows.ahead(2, 5).tolist() == [5, 11]
    assert len(rows) == 4
