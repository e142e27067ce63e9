"""Results in order, a few items ahead, errors in their place."""

import threading
import time

import pytest

from teacher_cache.ahead import THREADS, map_ahead


def test_results_come_in_order() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return 2 * item

    assert list(map_ahead(slow_at_first, range(20), 3)) == [2 * item for item in range(20)]
    assert list(map_ahead(slow_at_first, [], 3)) == []


@pytest.mark.parametrize("threads", [3, THREADS])
def test_calls_run_concurrently(threads: int) -> None:
    together = threading.Barrier(threads, timeout=60)
    assert len(list(map_ahead(lambda _: together.wait(), range(4 * threads), threads))) == 4 * threads


@pytest.mark.parametrize(("ahead", "most"), [(None, 4), (3, 3)])
def test_at_most_ahead_items_are_pending(ahead: int | None, most: int) -> None:
    taken: list[int] = []
    results = map_ahead(lambda item: item, (taken.append(item) or item for item in range(100)), 2, ahead)
    assert taken == []
    for item in range(5):
        assert next(results) == item
        assert len(taken) == item + most + 1
    results.close()
    assert len(taken) == 5 + most


def test_an_error_is_raised_in_its_place_and_ends_the_iteration() -> None:
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
    assert max(done) <= 7
    assert list(results) == []


@pytest.mark.parametrize("threads", [1, THREADS])
def test_after_an_error_no_call_is_started(threads: int) -> None:
    begun: list[int] = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="3"):
        list(map_ahead(fail, range(10_000), threads))
    assert len(begun) < 4 + threads


def test_closing_waits_for_running_calls_and_starts_none() -> None:
    begun: list[int] = []
    ended: list[int] = []
    both_run = threading.Barrier(3, timeout=60)

    def slow(item: int) -> int:
        begun.append(item)
        if item in (1, 2):
            both_run.wait()
            time.sleep(0.1)
        ended.append(item)
        return item

    results = map_ahead(slow, range(100), 2)
    assert next(results) == 0
    both_run.wait()
    results.close()
    assert sorted(begun) == sorted(ended) == [0, 1, 2]
