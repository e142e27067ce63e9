"""Ordered results, bounded read-ahead, errors in place of their result."""

import threading
import time

import pytest

from teacher_cache.shards.ahead import map_ahead


def test_results_come_in_order() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return 2 * item

    assert list(map_ahead(slow_at_first, range(20), 3)) == [2 * item for item in range(20)]
    assert list(map_ahead(slow_at_first, [], 3)) == []


def test_threads_work_side_by_side() -> None:
    together = threading.Barrier(3, timeout=20)
    assert len(list(map_ahead(lambda _: together.wait(), range(6), 3))) == 6


def test_so_many_items_are_taken_ahead_and_no_more() -> None:
    taken: list[int] = []
    results = map_ahead(lambda item: item, (taken.append(item) or item for item in range(100)), 2)
    assert taken == []
    for item in range(5):
        assert next(results) == item
        assert len(taken) == item + 4
    results.close()
    assert len(taken) == 8


def test_an_error_comes_in_its_place_and_ends_it() -> None:
    done: list[int] = []

    def fails_at_3(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        done.append(item)
        return item

    results = map_ahead(fails_at_3, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="3"):
        next(results)
    assert max(done) <= 6
    assert list(results) == []
