"""Sections of untrusted frames round-trip, or are refused before anything of another size is decompressed."""

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError
from support.forge import claiming_frame, columns, frame_of, sections, with_sections
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, compress_sections, payload_frame, write_payload

WIDE = np.array([[1, 2, 3], [70_000, 5, 2**24 - 1]], np.uint32)


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 2**32 - 1), max_size=30)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_round_trip(arrays: list[tuple[int, list[int]]]) -> None:
    planes = [split_planes(np.array(values, np.uint32), width) for width, values in arrays]
    found = Sections(compress_sections(planes, 1), len(arrays), sum(section.size for section in planes))
    for number, (width, values) in enumerate(arrays):
        assert found[number].tobytes() == planes[number].tobytes()
        integers = found.integers(number, (len(values),), width)
        assert integers.dtype == {1: np.uint8, 2: np.uint16}.get(width, np.uint32)
        assert integers.tolist() == [value % 256**width for value in values]


def test_integers_have_the_requested_shape() -> None:
    frame = compress_sections([split_planes(WIDE, 1), split_planes(WIDE, 3)], 1)
    found = Sections(frame, 2, 24)
    np.testing.assert_array_equal(found.integers(1, (2, 3), 3), WIDE)
    for section, shape, width in ((1, (2, 2), 3), (1, (2, 3), 2), (1, (2, 3), 4), (0, (2, 3), 3), (1, (0, 3), 3)):
        with pytest.raises(CorruptCacheError, match=f"^section {section}: {(6, 18)[section]} bytes, wanted {width} "):
            found.integers(section, shape, width)


def test_a_payload_is_an_arrow_row_with_one_zstd_frame_of_sizes_and_sections() -> None:
    payload = write_payload([split_planes(WIDE, 2), np.empty((1, 0), np.uint8), np.array([[7]], np.uint8)], 1)
    low, high = bytes([1, 2, 3, 70_000 % 256, 5, 255]), bytes([0, 0, 0, 70_000 // 256 % 256, 0, 255])
    assert list(columns(payload)) == ["frame"]
    assert zstandard.decompress(columns(payload)["frame"]) == struct.pack("<3I", 12, 0, 1) + low + high + b"\7"
    assert sections(payload) == [low + high, b"", b"\7"]
    assert bytes(payload_frame(payload)) == columns(payload)["frame"]


def test_a_payload_of_other_writers_is_read() -> None:
    payload = with_sections(write_payload([np.array([[1, 2]], np.uint8), np.array([[3]], np.uint8)], 1), {1: b"abc"})
    found = Sections(payload_frame(payload), 2, 5)
    assert (found[0].tobytes(), found[1].tobytes()) == (b"\1\2", b"abc")


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (0, 0), (4, 1), (2**32 - 1, 5), (2**32 - 1, 2**32 - 1)])
def test_sizes_inconsistent_with_the_content_are_refused(sizes: tuple[int, int]) -> None:
    frame = zstandard.compress(struct.pack("<2I", *sizes) + bytes(4))
    match = f"sections end at {8 + sum(sizes)} of 12 bytes"
    with pytest.raises(CorruptCacheError, match=match):
        Sections(frame, 2, 100)


def test_the_unchanged_sizes_are_accepted() -> None:
    found = Sections(zstandard.compress(struct.pack("<2I", 1, 3) + bytes(4)), 2, 100)
    assert (found[0].size, found[1].size) == (1, 3)


@pytest.mark.parametrize("n_sections", [0, 1, 3, 4])
def test_another_number_of_sections_is_refused(n_sections: int) -> None:
    with pytest.raises(CorruptCacheError, match="sections end at"):
        Sections(frame_of([b"ab", b"cdefghijk"]), n_sections, 100)


@pytest.mark.parametrize("size", [0, 7])
def test_a_truncated_table_of_sizes_is_refused(size: int) -> None:
    with pytest.raises(CorruptCacheError, match=f"declares {size} bytes, wanted 8 to 108"):
        Sections(zstandard.compress(bytes(size)), 2, 100)


def test_the_limit_applies_to_all_sections_in_total() -> None:
    frame = frame_of([b"abc", b"defg"])
    assert Sections(frame, 2, 7)[1].tobytes() == b"defg"
    with pytest.raises(CorruptCacheError, match="declares 15 bytes, wanted 8 to 14"):
        Sections(frame, 2, 6)


HOSTILE = {
    "a bomb": zstandard.compress(struct.pack("<2I", 1 << 26, 0) + bytes(1 << 26)),
    "claims 2^40": claiming_frame(1 << 40),
    "claims 2^63": claiming_frame(1 << 63),
    "claims a size within the limit, holds more": claiming_frame(1000)[:13] + zstandard.compress(bytes(1 << 26))[6:],
    "declares no size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26)),
    "nothing": b"",
    "not zstd": b"x" * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_refused_without_allocating(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match="frame"):
            Sections(HOSTILE[name], 2, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
