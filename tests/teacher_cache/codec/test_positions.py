"""Row numbers as bits round-trip; those beyond the sequence are refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError
from teacher_cache.codec.positions import decode_positions, encode_positions, most_bytes


@given(st.sets(st.integers(0, 99)), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_round_trip(numbers: set[int], more: int) -> None:
    positions = np.array(sorted(numbers), np.int32)
    num_tokens = max(numbers, default=-1) + 1 + more
    section = encode_positions(positions)
    assert section.size <= most_bytes(num_tokens)
    found = decode_positions(section[0], num_tokens)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, positions)


def test_the_first_token_is_the_lowest_bit_of_the_first_byte() -> None:
    assert encode_positions(np.array([0, 3, 9], np.int32)).tolist() == [[0b1001, 0b10]]
    assert decode_positions(np.array([0b1001, 0b10], np.uint8), 10).tolist() == [0, 3, 9]


def test_no_rows_take_no_bytes() -> None:
    section = encode_positions(np.empty(0, np.int32))
    assert section.shape == (1, 0)
    assert decode_positions(section[0], 0).tolist() == decode_positions(section[0], 5).tolist() == []


@pytest.mark.parametrize(("num_tokens", "size"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_each_token_takes_one_bit(num_tokens: int, size: int) -> None:
    assert encode_positions(np.arange(num_tokens)).size == most_bytes(num_tokens) == size


def test_a_row_beyond_the_sequence_is_refused() -> None:
    section = encode_positions(np.array([0, 9], np.int32))[0]
    assert decode_positions(section, 10).tolist() == [0, 9]
    with pytest.raises(CorruptCacheError, match="a position: 9, wanted 8"):
        decode_positions(section, 9)
    for num_tokens in (0, 1, 8):
        with pytest.raises(CorruptCacheError, match="position"):
            decode_positions(section, num_tokens)


def test_a_section_that_is_too_long_is_refused_without_allocating() -> None:
    """The section may have megabytes; its row numbers would take 64 times as much."""
    section = np.full(1 << 20, 255, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match="position"):
            decode_positions(section, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
