import numpy as np
import pytest

from schemas.errors import UserError
from support.indexed import Indexed
from trainer.data.selection import Selection, Subset, is_held_out

SIZES = [4, 3, 5, 2]
LAYERS = [
    "base",
    "code",
    "base",
    "code",
    "base",
    "base",
    "base",
    "code",
    "code",
    "code",
    "chat",
    "base",
    "chat",
    "code",
]


def cache() -> Indexed:
    return Indexed(SIZES, lengths=np.arange(14) + 3, layers=LAYERS)


def chosen(selection: Selection) -> list[int]:
    return Subset(cache(), selection).selected()[0].tolist()


def test_selecting_everything_reads_no_index() -> None:
    indexed = cache()
    subset = Subset(indexed, Selection(limit=9))
    assert [subset.samples(shard).tolist() for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert subset.sizes.tolist() == [4, 3, 2]
    assert indexed.reads == []
    assert Subset(indexed, Selection(limit=99)).selected()[0].tolist() == list(range(14))
    assert Subset(indexed, Selection(limit=7)).n_shards == 2


def test_mix_layers_are_read_from_the_index() -> None:
    assert chosen(Selection(layers=("code",))) == [1, 3, 7, 8, 9, 13]
    assert chosen(Selection(layers=("chat", "code"))) == [1, 3, 7, 8, 9, 10, 12, 13]
    assert chosen(Selection(layers=("none",))) == []


def test_a_limit_is_one_of_the_chosen_layers_and_reads_no_more_indexes_than_it_needs() -> None:
    indexed = cache()
    subset = Subset(indexed, Selection(layers=("code",), limit=3))
    assert subset.selected()[0].tolist() == [1, 3, 7]
    assert max(indexed.reads) == 2


def test_both_sides_of_a_split_are_the_whole() -> None:
    for layers, limit in ((None, None), (("base", "code"), None), (None, 11), (("base",), 4)):
        train = chosen(Selection(layers, limit, 0.4))
        held_out = chosen(Selection(layers, limit, 0.4, held_out=True))
        assert sorted(train + held_out) == chosen(Selection(layers, limit))
        assert train
    assert chosen(Selection(held_out=True)) == []


def test_lengths_come_from_the_indexes() -> None:
    assert Subset(cache(), Selection(layers=("code",))).selected()[1].tolist() == [4, 6, 10, 11, 12, 16]
    subset = Subset(cache(), Selection())
    assert subset.lengths(np.array([13, 0, 5, 4])).tolist() == [16, 3, 8, 7]


def test_the_first_samples_are_selected() -> None:
    indexed = cache()
    assert Subset(indexed, Selection(layers=("code",))).selected(at_most=2)[0].tolist() == [1, 3]
    assert set(indexed.reads) == {0}


def test_a_cache_without_mix_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"^old: the cache does not store the mix layers"):
        Subset(Indexed(SIZES, url="old"), Selection(layers=("code",))).selected()


def test_the_split_depends_on_the_key_alone() -> None:
    keys = [f"{i:08x}" for i in range(2000)]
    held_out = is_held_out(keys, 0.1)
    assert 140 < held_out.sum() < 260
    assert np.array_equal(is_held_out(keys[::-1][:1000], 0.1), held_out[::-1][:1000])
    assert not is_held_out(keys, 0.0).any()
    assert is_held_out(keys, 0.2)[held_out].all()
