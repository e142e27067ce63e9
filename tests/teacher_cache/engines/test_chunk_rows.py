"""Rows of logits at a time, from free memory."""

import pytest
import torch

from teacher_cache.engines.chunk_rows import CPU_ROWS, LEAST_ROWS, MOST_ROWS, free_memory_bytes, head_chunk_rows

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free_gib", "vocabulary", "rows"),
    [
        (15, 248_320, 1024),  # 2,048 rows of draws would take all of the 15 GB
        (31, 248_320, 2048),
        (60, 151_936, MOST_ROWS),
        (8, 151_936, 512),
        (1, 151_936, 64),
        (0.01, 151_936, LEAST_ROWS),
        (0, 151_936, LEAST_ROWS),
        (40, 32_000, MOST_ROWS),
    ],
)
def test_rows_fit_in_half_of_the_free_memory(free_gib: float, vocabulary: int, rows: int) -> None:
    free = int(free_gib * GIB)
    assert head_chunk_rows(free, vocabulary) == rows
    if rows > LEAST_ROWS:
        assert 30 * vocabulary * rows <= free / 2
    if LEAST_ROWS < rows < MOST_ROWS:
        assert 30 * vocabulary * 2 * rows > free / 2, "a power of two more would not fit"


def test_cpus_have_a_fixed_number() -> None:
    assert free_memory_bytes(torch.device("cpu")) is None
    assert head_chunk_rows(None, 248_320) == CPU_ROWS
