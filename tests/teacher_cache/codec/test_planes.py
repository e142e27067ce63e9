"""Zstd frames of untrusted payloads and tables: nothing is decompressed that is not of the expected size."""

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import claiming_frame, columns, with_frames
from support.synthetic import logits_sample
from teacher_cache.codec.logits import LogitsDecoder, LogitsEncoder
from teacher_cache.codec.permutation import build_code_table, decode_table
from teacher_cache.codec.planes import compress_planes, decompress_planes, join_planes, split_planes

S, K, V = 6, 4, 50
CAPTURE = LogitsCapture(k=K)
TABLE = build_code_table(np.ones(V))
PAYLOAD = LogitsEncoder(CAPTURE, CodecConfig(), TABLE).encode(
    logits_sample(np.random.default_rng(0).normal(size=(S, V)), np.arange(S), CAPTURE)
)
SIZES = {"ids": S * K, "logprobs": S * K, "scalars": 3 * S}
COLUMNS = pytest.mark.parametrize("column", list(SIZES))


def decode_with(column: str, frame: bytes) -> None:
    frames = columns(PAYLOAD)[column]
    decoder = LogitsDecoder(CAPTURE, CodecConfig(), TABLE)
    decoder.decode(with_frames(PAYLOAD, **{column: [frame, *frames[1:]]}), S)


@COLUMNS
def test_each_plane_is_one_ordinary_zstd_frame(column: str) -> None:
    for frame in columns(PAYLOAD)[column]:
        assert zstandard.frame_content_size(frame) == SIZES[column]
        assert len(zstandard.decompress(frame)) == SIZES[column]


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


@COLUMNS
@pytest.mark.parametrize("name", list(_wrong_frames(8)))
def test_a_wrong_frame_is_refused_without_allocating(column: str, name: str) -> None:
    decode_with(column, zstandard.compress(bytes(SIZES[column])))
    frame = _wrong_frames(SIZES[column])[name]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match=column):
            decode_with(column, frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_claiming_frame_is_one_that_zstd_reads() -> None:
    """So that the tests above fail for the size and not for a malformed header."""
    assert zstandard.frame_content_size(claiming_frame(1 << 40)) == 1 << 40
    assert zstandard.decompress(claiming_frame(1000)) == bytes(1000)


@pytest.mark.parametrize("name", list(_wrong_frames(8)))
def test_a_wrong_table_frame_is_refused_without_allocating(name: str) -> None:
    frame = _wrong_frames(4 * V)[name]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match=r"tables/x\.zst"):
            decode_table(frame, V, "0" * 64, "tables/x.zst")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=60, deadline=None)
@given(values=arrays(np.uint32, st.integers(0, 50)), n_planes=st.sampled_from([1, 2, 3, 4]))
def test_round_trip(values: np.ndarray, n_planes: int) -> None:
    values = values & np.uint32((1 << 8 * n_planes) - 1)
    planes = split_planes(values, n_planes)
    assert planes.shape == (n_planes, len(values))
    frames = compress_planes(planes, zstandard.ZstdCompressor())
    joined = join_planes(decompress_planes(frames, [len(values)] * n_planes))
    assert np.array_equal(joined, values)


def test_negative_integers_come_back_from_four_planes() -> None:
    values = np.array([-(2**31), -1, 0, 2**31 - 1], np.int32)
    frames = compress_planes(split_planes(values, 4), zstandard.ZstdCompressor())
    assert np.array_equal(join_planes(decompress_planes(frames, [4] * 4)).view(np.int32), values)


def test_a_broken_frame_among_good_ones_is_refused() -> None:
    good = zstandard.compress(np.random.default_rng(0).integers(0, 9, 500).astype(np.uint8).tobytes())
    for place in range(5, len(good)):
        broken = bytearray(good)
        broken[place] ^= 255
        try:
            (plain,) = decompress_planes([bytes(broken)], [500])
        except CorruptCacheError:
            continue
        assert len(plain) == 500, "checksums are the tar's; sizes are always right"


def test_no_frames() -> None:
    assert decompress_planes([], []) == []


def test_a_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(CorruptCacheError, match="declares 4 bytes, 5 are expected"):
        decompress_planes([zstandard.compress(b"abcd")], [5])
