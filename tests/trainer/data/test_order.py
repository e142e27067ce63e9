import pickle

import numpy as np
import pytest

from schemas.errors import UserError
from support.indexed import Indexed
from trainer.data.order import PACKING_WINDOW, START, CacheOrder, Place, Shuffle
from trainer.data.selection import Selection, Subset

SIZES = [30, 1, 49, 20, 10]
LENGTHS = np.random.default_rng(0).integers(3, 40, 110)


EVERYTHING = Selection()


def order(
    seed: int = 0,
    mixed: int = 2,
    selection: Selection = EVERYTHING,
    known: Place = START,
    pack_tokens: int | None = None,
) -> CacheOrder:
    return CacheOrder(Subset(Indexed(SIZES, LENGTHS), selection), Shuffle(seed, mixed), pack_tokens, known)


def samples(rows: list[list[int]]) -> list[int]:
    return [sample for row in rows for sample in row]


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    small = CacheOrder(Subset(Indexed([2, 3, 4]), Selection()), Shuffle(seed=3, shards_mixed=2))
    assert samples(small.rows(9, 18)) == [7, 6, 1, 5, 8, 0, 4, 2, 3]  # other machines must agree
    epochs = {tuple(samples(order(seed).rows(110 * epoch, 110 * (epoch + 1)))) for seed in range(4) for epoch in (0, 1)}
    assert len(epochs) == 8


def test_the_samples_of_a_few_shards_at_a_time_are_mixed() -> None:
    for mixed in (1, 4, 40, 100):
        mixture = CacheOrder(Subset(Indexed([25] * 40), Selection()), Shuffle(0, mixed))
        epoch = np.array(samples(mixture.rows(0, 1000)))
        assert sorted(epoch) == list(range(1000))
        shards = epoch // 25
        groups = [set(shards[start : start + 25 * mixed]) for start in range(0, 1000, 25 * mixed)]
        assert [len(group) for group in groups] == [min(mixed, 40)] * len(groups)
        together = np.mean(np.diff(shards) == 0)
        assert together == pytest.approx(0.96 if mixed == 1 else 1 / min(mixed, 40), abs=0.05), "mixed well"
        first = [min(group) for group in groups]
        assert len(first) == 1 or first != sorted(first), "shards come in random order"


SELECTIONS = {
    "everything": EVERYTHING,
    "the first 75": Selection(limit=75),
    "a split": Selection(validation_fraction=0.3),
    "a split of the first": Selection(limit=90, validation_fraction=0.3),
}


@pytest.mark.parametrize("pack_tokens", [None, 64])
@pytest.mark.parametrize("name", SELECTIONS)
def test_every_epoch_holds_each_sample_once(name: str, pack_tokens: int | None) -> None:
    whole = order(selection=SELECTIONS[name], pack_tokens=pack_tokens)
    wanted = whole.subset.selected()[0].tolist()
    assert whole.has_rows()
    start, epochs = 0, []
    for epoch in range(3):
        assert whole.epoch(start) == epoch
        stop = start + whole.rows_in_epoch(epoch)
        epochs.append(samples(whole.rows(start, stop)))
        assert sorted(epochs[-1]) == wanted
        start = stop
    assert epochs[0] != epochs[1] != epochs[2]


def test_samples_keep_their_order_whatever_is_selected_beside_them() -> None:
    some = order(selection=SELECTIONS["a split"])
    kept = set(some.subset.selected()[0].tolist())
    found = samples(some.rows(0, len(kept)))
    assert found == [sample for sample in samples(order().rows(0, 110)) if sample in kept]


@pytest.mark.parametrize("pack_tokens", [None, 64])
@pytest.mark.parametrize("name", SELECTIONS)
def test_any_stretch_of_rows_is_found_from_anywhere(name: str, pack_tokens: int | None) -> None:
    settings = {"selection": SELECTIONS[name], "pack_tokens": pack_tokens}
    rows = order(**settings).rows(0, 300)
    rng = np.random.default_rng(1)
    walked = order(**settings)
    for start in rng.integers(0, 250, 30).tolist():
        stop = start + int(rng.integers(0, 50))
        assert walked.rows(start, stop) == rows[start:stop]
        place = walked.place(start)
        resumed = pickle.loads(pickle.dumps(order(**settings, known=place)))
        assert resumed.rows(start, stop) == rows[start:stop]
        ahead = resumed.ahead(start, 12).tolist()
        assert ahead == samples(rows[start:])[: len(ahead)]
        assert len(ahead) >= 1


def test_groups_before_a_known_place_are_not_computed() -> None:
    place = order(pack_tokens=64).place(200)
    assert place.epoch > 1
    resumed = order(pack_tokens=64, known=place)
    resumed.rows(200, 201)
    read = resumed.subset.cache.reads  # type: ignore[attr-defined]
    assert len(set(read)) <= 2, "the shards of one group"


def test_epochs_are_counted_by_samples() -> None:
    whole = order()
    assert [whole.epoch(row) for row in (0, 11, 55, 110, 143)] == pytest.approx([0, 0.1, 0.5, 1, 1.3])
    packed = order(pack_tokens=64)
    seen = [packed.epoch(row) for row in range(0, 3 * packed.rows_in_epoch(0), 5)]
    assert seen == sorted(seen)


def test_nothing_selected_has_no_rows() -> None:
    assert not order(selection=Selection(validation_fraction=0.0, held_out=True)).has_rows()


def test_packed_rows_fit_and_are_not_sorted() -> None:
    packed = order(pack_tokens=64)
    rows = packed.rows(0, packed.rows_in_epoch(0))
    sizes = [int(LENGTHS[row].sum()) for row in rows]
    assert max(sizes) <= 64
    assert np.mean(sizes) > 50
    assert np.corrcoef(sizes, np.arange(len(sizes)))[0, 1] < 0.5  # rows are not sorted by how full they are


def test_packed_rows_come_from_shards_that_are_read_together() -> None:
    lengths = np.random.default_rng(2).integers(3, 40, 20_000)
    packed = CacheOrder(Subset(Indexed([500] * 40, lengths), Selection()), Shuffle(0, shards_mixed=16), 128)
    rows = packed.rows(0, packed.rows_in_epoch(0))
    assert sorted(samples(rows)) == list(range(20_000))
    windows = [samples(rows[start : start + 200]) for start in range(0, len(rows) - 200, 200)]
    assert max(len({sample // 500 for sample in window}) for window in windows) <= 32, "two groups at most"
    assert len(rows) * 128 < 1.1 * lengths.sum()
    assert PACKING_WINDOW < 16 * 500, "a group is packed in several windows"


def test_sample_longer_than_a_row() -> None:
    with pytest.raises(UserError, match=r"^cache: a sample has 38 tokens, more than data.pack_tokens = 20; set"):
        order(pack_tokens=20).rows(0, 1)
