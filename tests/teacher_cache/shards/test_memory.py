"""Pooled memory is reused, but never while it is referenced."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from teacher_cache.shards import memory
from teacher_cache.shards.memory import KEPT, LARGEST_RATIO, SMALLEST, borrow


@pytest.fixture(autouse=True)
def nothing_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_unused", {})


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def unused() -> list[int]:
    """Sizes of unused blocks, most recently returned last."""
    return [block.nbytes // SMALLEST for block in memory._unused.values()]


def test_memory_is_used_again_once_it_is_free() -> None:
    block = borrow(SMALLEST + 1000)
    first = address(block)
    assert (block.shape, block.dtype) == ((SMALLEST + 1000,), np.uint8)
    del block
    again = borrow(2 * SMALLEST)  # a block larger than requested
    assert address(again) == first
    assert address(borrow(2 * SMALLEST)) != first


REFER: list[Callable[[np.ndarray], Any]] = [
    lambda block: block[24:80],
    lambda block: block.view(np.int64).reshape(5, -1),
    torch.from_numpy,
]


@pytest.mark.parametrize("refer", REFER)
def test_memory_is_not_used_again_while_something_refers_to_it(refer: Callable[[np.ndarray], Any]) -> None:
    block = borrow(5 * SMALLEST)
    block[:] = 7
    kept = refer(block)
    del block
    for _ in range(3):
        borrow(5 * SMALLEST)[:] = 9
    assert unused() == [5]
    assert (np.asarray(kept).view(np.uint8) == 7).all()


def test_the_smallest_block_that_is_large_enough_is_taken_but_none_far_too_large() -> None:
    blocks = [borrow(n * SMALLEST) for n in (3, 1, 2)]
    places = [address(block) for block in blocks]
    blocks.clear()
    assert address(borrow(SMALLEST + 1)) == places[2]
    memory._unused.clear()
    del blocks[:]
    large = borrow((LARGEST_RATIO + 1) * SMALLEST)
    del large
    borrow(SMALLEST)
    assert unused() == [LARGEST_RATIO + 1, 1]


def test_few_blocks_are_kept_the_last_ones() -> None:
    for n in range(1, KEPT + 3):
        blocks = [borrow((i + 1) * SMALLEST) for i in range(n)]
        while blocks:
            blocks.pop()
        assert unused() == [i + 1 for i in reversed(range(n))][-KEPT:]
        memory._unused.clear()


@pytest.mark.parametrize("n_bytes", [0, 1, SMALLEST - 1])
def test_little_memory_is_not_kept(n_bytes: int) -> None:
    assert borrow(n_bytes).shape == (n_bytes,)
    assert unused() == []


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            block = borrow(SMALLEST + number)
            block[:] = number
            if not (block == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(unused()) <= KEPT
