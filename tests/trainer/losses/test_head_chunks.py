from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.device_memory import allocatable_bytes
from teacher_cache.output_head import OutputHead
from trainer.losses import head_chunks
from trainer.losses.head_chunks import LEAST_BYTES, MOST_BYTES, SHARE, TEMPORARIES, chunk_bytes, chunk_rows

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "expected"),
    [(None, 1 << 26), (70 * GIB, GIB), (20 * GIB, GIB), (19 * GIB, GIB // 2), (8 * GIB, GIB // 4), (0, 1 << 26)],
)
def test_chunks_grow_with_free_memory(free: int | None, expected: int) -> None:
    assert chunk_bytes(free) == expected


@given(st.integers(0, 200 * GIB))
def test_a_chunk_is_a_power_of_two_and_leaves_most_of_the_memory_free(free: int) -> None:
    size = chunk_bytes(free)
    assert size.bit_count() == 1
    assert LEAST_BYTES <= size <= MOST_BYTES
    assert size == LEAST_BYTES or size * (1 + TEMPORARIES) <= free / SHARE
    assert size == MOST_BYTES or 2 * size * (1 + TEMPORARIES) > free / SHARE


def test_chunks_cover_the_rows_and_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_chunks, "CPU_BYTES", 4 * 4 * 23)
    assert chunk_rows(OutputHead(torch.zeros(23, 6)), 11) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert chunk_rows(OutputHead(torch.zeros(1150, 6)), 2) == [slice(0, 1), slice(1, 2)]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12))
def test_rows_that_are_joined_stay_in_one_chunk(lengths: list[int], size: int) -> None:
    """Lengths of stretches of joined rows; chunks are as large as they can be."""
    joined_N = torch.tensor([row > 0 for length in lengths for row in range(length)], dtype=torch.bool)
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_chunks, "CPU_BYTES", size * 4 * 23)
        head, n_rows = OutputHead(torch.zeros(23, 6)), len(joined_N)
        chunks = chunk_rows(head, n_rows, joined_N)
        assert chunk_rows(head, n_rows, torch.zeros(n_rows, dtype=torch.bool)) == chunk_rows(head, n_rows)
    borders = [0, *(chunk.stop for chunk in chunks)]
    assert [chunk.start for chunk in chunks] == borders[:-1]
    assert borders[-1] == n_rows
    assert set(borders) <= set(starts)
    for start, stop in pairwise(borders):
        fitting = [each for each in starts if start < each <= start + size]
        assert stop == max(fitting, default=min(each for each in starts if each > start))


def test_free_memory_of_a_gpu_includes_what_the_allocator_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 40 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 25 * GIB)
    assert allocatable_bytes(device) == 45 * GIB
    assert allocatable_bytes(torch.device("cpu")) is None
