"""Choice of samples, and order under read-ahead."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from tools.looking.sampling import choose, choose_samples, common_samples, find_samples, read_each


@given(st.integers(1, 10**12), st.integers(1, 2000))
def test_one_of_each_slice(total: int, wanted: int) -> None:
    found = choose(total, wanted) if wanted < total or total < 10**5 else np.arange(1)
    if wanted >= total:
        assert total >= 10**5 or found.tolist() == list(range(total))
        return
    slices = [int(place) for place in (found * wanted + wanted - 1) // total]
    assert len(found) == wanted
    assert 0 <= found[0] <= found[-1] < total
    assert (np.diff(found) > 0).all()
    assert all(abs(s - i) <= 1 for i, s in enumerate(slices))
    np.testing.assert_array_equal(found, choose(total, wanted))


def test_all() -> None:
    assert choose(5, None).tolist() == [0, 1, 2, 3, 4]


def test_an_empty_cache(tmp_path: Path) -> None:
    write_cache(str(tmp_path), random_shards([[5]]), commit=0)
    with pytest.raises(UserError, match="no shard is committed yet"):
        choose_samples(CacheReader(str(tmp_path)), 3)


def test_common_samples_and_keys(tmp_path: Path) -> None:
    shards = random_shards([[5, 6, 7], [8, 9], [10, 11]])
    write_cache(str(tmp_path / "a"), shards)
    write_cache(str(tmp_path / "b"), [[shards[2][1], shards[0][2]], [shards[1][0]]])
    a, b = CacheReader(str(tmp_path / "a")), CacheReader(str(tmp_path / "b"))
    in_a, in_b = common_samples(a, b)
    assert in_a.tolist() == [2, 3, 6]
    assert in_b.tolist() == [1, 2, 0]
    assert find_samples(a, [a.keys[5], a.keys[1]]) == [5, 1]
    assert find_samples(a, []) == []
    with pytest.raises(UserError, match="no sample 'abc' among 7"):
        find_samples(a, [a.keys[0], "abc"])


def test_reading_keeps_the_order_and_tells_of_its_progress() -> None:
    told: list[tuple[int, int]] = []
    places = list(range(100, 0, -1))
    assert list(read_each(places, lambda place: place * 2, lambda *now: told.append(now))) == [p * 2 for p in places]
    assert told == [(done, 100) for done in range(1, 101)]


def test_an_error_while_reading_comes_out() -> None:
    def read(place: int) -> int:
        if place == 40:
            raise UserError("damaged")
        return place

    with pytest.raises(UserError, match="damaged"):
        list(read_each(range(100), read))
