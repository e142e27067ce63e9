"""Untrusted zstd frames of payloads and tables: frames of an unexpected size are refused before decompression."""

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import CorruptCacheError
from support.forge import claiming_frame
from teacher_cache.codec.permutation import decode_table
from teacher_cache.codec.planes import compress_planes, decompress, join_planes, split_planes

SIZE, VOCABULARY = 5000, 50


def _frame_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def _wrong_frames(size: int) -> dict[str, bytes]:
    good = zstandard.compress(bytes(size))
    return {
        "shorter": zstandard.compress(bytes(size - 1)),
        "longer": zstandard.compress(bytes(size + 1)),
        "bomb": zstandard.compress(bytes(1 << 26)),
        "claims 2^40": claiming_frame(1 << 40),
        "claims 2^63": claiming_frame(1 << 63),
        "claims the right size, holds more": claiming_frame(size)[:13] + zstandard.compress(bytes(size + 9))[6:],
        "declares no size": _frame_without_size(bytes(size)),
        "cut": good[:-1],
        "header only": good[:6],
        "nothing": b"",
        "not zstd": b"x" * size,
        "another magic number": b"\x27" + good[1:],
    }


@pytest.mark.parametrize("name", list(_wrong_frames(8)))
def test_a_wrong_frame_is_refused_without_allocating(name: str) -> None:
    assert decompress(zstandard.compress(bytes(SIZE)), SIZE, SIZE).tobytes() == bytes(SIZE)
    frame = _wrong_frames(SIZE)[name]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match="frame"):
            decompress(frame, SIZE, SIZE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_claiming_frame_is_a_valid_zstd_frame() -> None:
    """Ensures that the tests above fail on the size, not on a malformed header."""
    assert zstandard.frame_content_size(claiming_frame(1 << 40)) == 1 << 40
    assert zstandard.decompress(claiming_frame(1000)) == bytes(1000)


@pytest.mark.parametrize("name", list(_wrong_frames(8)))
def test_a_wrong_table_frame_is_refused_without_allocating(name: str) -> None:
    frame = _wrong_frames(4 * VOCABULARY)[name]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match=r"tables/x\.zst: .*frame"):
            decode_table(frame, VOCABULARY, "0" * 64, "tables/x.zst")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=60, deadline=None)
@given(values=arrays(np.uint32, st.integers(0, 50)), n_planes=st.sampled_from([1, 2, 3, 4]))
def test_round_trip(values: np.ndarray, n_planes: int) -> None:
    planes = split_planes(values, n_planes)
    assert planes.shape == (n_planes, len(values))
    plain = decompress(compress_planes(list(planes), 3), planes.size, planes.size)
    joined = join_planes(plain, n_planes)
    assert joined.dtype == {1: np.uint8, 2: np.uint16, 3: np.uint32, 4: np.uint32}[n_planes]
    assert joined.tolist() == [value % 256**n_planes for value in values.tolist()]


def test_planes_are_the_lowest_bytes_then_the_second_ones() -> None:
    values = np.array([[0x030201, -1], [0x060504, -2]], np.int32)
    planes = bytes([1, 255, 4, 254, 2, 255, 5, 255, 3, 255, 6, 255])
    assert split_planes(values, 3).tobytes() == planes
    assert split_planes(values.astype(">i4"), 3).tobytes() == planes
    assert join_planes(np.frombuffer(planes, np.uint8), 3).tolist() == [0x030201, 2**24 - 1, 0x060504, 2**24 - 2]
    assert split_planes(values, 0).size == 0


def test_planes_do_not_share_a_huffman_table() -> None:
    """Why each plane ends a block: two kinds of bytes, each cheap alone, cost more with a shared table."""
    rng = np.random.default_rng(0)
    planes = [rng.geometric(0.3, 20_000).astype(np.uint8), 255 - rng.geometric(0.02, 20_000).astype(np.uint8)]
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
    apart = sum(len(compressor.compress(plane.tobytes())) for plane in planes)
    assert len(compress_planes(planes, 1)) <= apart
    assert len(compressor.compress(np.concatenate(planes).tobytes())) > 1.02 * apart


def test_a_broken_frame_is_refused_or_has_the_right_size() -> None:
    good = zstandard.compress(np.random.default_rng(0).integers(0, 9, 500).astype(np.uint8).tobytes())
    for place in range(5, len(good)):
        broken = bytearray(good)
        broken[place] ^= 255
        try:
            plain = decompress(bytes(broken), 500, 500)
        except CorruptCacheError:
            continue
        assert len(plain) == 500, "checksums are the tar's; sizes are always right"


def test_empty_planes() -> None:
    assert len(decompress(compress_planes([], 3), 0, 0)) == 0


def test_a_size_between_least_and_most_is_accepted_and_another_is_named() -> None:
    frame = zstandard.compress(b"abcd")
    for most, least in ((4, 4), (9, 0), (4, 0), (9, 4)):
        assert decompress(frame, most, least).tobytes() == b"abcd"
    for most, least in ((3, 0), (9, 5)):
        with pytest.raises(CorruptCacheError, match=f"declares 4 bytes, wanted {least} to {most}"):
            decompress(frame, most, least)


def test_a_frame_of_an_extreme_ratio_is_refused() -> None:
    """Even if the caller allows the size: up to 16 MiB pass, and more only from a frame that is large itself."""
    with pytest.raises(CorruptCacheError, match=rf"declares {1 << 30} bytes, wanted 0 to {1 << 24}"):
        decompress(claiming_frame(1 << 30), 1 << 40, 0)
    assert len(decompress(zstandard.compress(bytes(1 << 24)), 1 << 40, 0)) == 1 << 24
    bomb = zstandard.compress(bytes((1 << 24) + 1))
    with pytest.raises(CorruptCacheError, match="wanted 0 to"):
        decompress(bomb, 1 << 40, 0)
    noise = np.random.default_rng(0).bytes(1 << 17) + bytes(1 << 24)
    assert len(decompress(zstandard.compress(noise), 1 << 40, 0)) == len(noise)


def test_decompressed_arrays_are_read_only() -> None:
    assert not decompress(zstandard.compress(b"abcd"), 4, 4).flags.writeable
