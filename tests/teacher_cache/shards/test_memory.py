"""Borrowed memory is used again, but never while something refers to it."""

import threading

import numpy as np
import pytest
import torch

from teacher_cache.shards import memory
from teacher_cache.shards.memory import GRAIN, KEPT, borrow


@pytest.fixture(autouse=True)
def nothing_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_unused", {})


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_it_is_free() -> None:
    block = borrow(1000)
    first = address(block)
    assert (block.shape, block.dtype) == ((1000,), np.uint8)
    del block
    again = borrow(GRAIN)  # a block is larger than what was asked for
    assert address(again) == first
    assert address(borrow(10)) != first


@pytest.mark.parametrize("refer", [lambda a: a[3:7], lambda a: a.view(np.int64).reshape(5, -1), torch.from_numpy])
def test_memory_is_not_used_again_while_something_refers_to_it(refer) -> None:
    block = borrow(1000)
    block[:] = 7
    kept = refer(block)
    del block
    for _ in range(3):
        borrow(1000)[:] = 9
    assert memory._unused
    kept = np.asarray(kept)
    assert (kept.view(np.uint8) == 7).all()


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    blocks = [borrow(n * GRAIN) for n in (3, 1, 2)]
    places = [address(block) for block in blocks]
    blocks.clear()
    assert address(borrow(GRAIN + 1)) == places[2]
    assert sorted(block.nbytes for block in memory._unused.values()) == [GRAIN, 2 * GRAIN, 3 * GRAIN]


def test_few_blocks_are_kept_the_largest() -> None:
    blocks = [borrow(n * GRAIN) for n in range(1, KEPT + 3)]
    blocks.clear()
    assert sorted(block.nbytes // GRAIN for block in memory._unused.values()) == list(range(3, KEPT + 3))


def test_nothing_at_all_is_borrowed() -> None:
    assert borrow(0).shape == (0,)


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            block = borrow(20_000)
            block[:] = number
            if not (block == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(memory._unused) <= KEPT
