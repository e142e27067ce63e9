"""Zstd frames of untrusted payloads and tables: nothing is decompressed that is not of the expected size."""

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, claiming_frame, columns
from support.synthetic import logits_sample
from teacher_cache.codec.logits import LogitsDecoder, LogitsEncoder
from teacher_cache.codec.permutation import build_code_table, decode_table
from teacher_cache.codec.planes import compress_planes, decompress, split_planes

S, K, V = 6, 4, 50
CAPTURE = LogitsCapture(k=K)
TABLE = build_code_table(np.ones(V))
PAYLOAD = LogitsEncoder(CAPTURE, CodecConfig(), TABLE).encode(
    logits_sample(np.random.default_rng(0).normal(size=(S, V)), np.arange(S), CAPTURE)
)
SIZE = sum(columns(PAYLOAD)["sizes"])


def decode_with(frame: bytes) -> None:
    row = columns(PAYLOAD) | {"frame": frame}
    LogitsDecoder(CAPTURE, CodecConfig(), TABLE).decode(arrow_stream(LOGITS_SCHEMA, [row]), S)


def test_a_payload_holds_one_ordinary_zstd_frame() -> None:
    frame = columns(PAYLOAD)["frame"]
    assert zstandard.frame_content_size(frame) == SIZE
    assert len(zstandard.decompress(frame)) == SIZE


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
    decode_with(zstandard.compress(zstandard.decompress(columns(PAYLOAD)["frame"])))
    frame = _wrong_frames(SIZE)[name]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCacheError, match="frame"):
            decode_with(frame)
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
@given(values=arrays(np.uint32, st.integers(0, 50)), n_planes=st.sampled_from([0, 1, 2, 3, 4]))
def test_round_trip(values: np.ndarray, n_planes: int) -> None:
    planes = split_planes(values, n_planes)
    assert planes.shape == (n_planes, len(values))
    plain = decompress(compress_planes(planes, zstandard.ZstdCompressor()), planes.size).reshape(planes.shape)
    joined = sum((plane.astype(np.uint64) << np.uint64(8 * i) for i, plane in enumerate(plain)), np.uint64(0))
    assert np.array_equal(joined, values & np.uint64((1 << 8 * n_planes) - 1)) or n_planes == 0


def test_planes_do_not_share_a_huffman_table() -> None:
    """The reason to end a block after each: two kinds of bytes, each cheap alone, are dearer under one table."""
    rng = np.random.default_rng(0)
    planes = [rng.geometric(0.3, 20_000).astype(np.uint8), 255 - rng.geometric(0.02, 20_000).astype(np.uint8)]
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
    apart = sum(len(compressor.compress(plane.tobytes())) for plane in planes)
    assert len(compress_planes(planes, compressor)) <= apart
    assert len(compressor.compress(np.concatenate(planes).tobytes())) > 1.02 * apart


def test_a_broken_frame_is_refused_or_has_the_right_size() -> None:
    good = zstandard.compress(np.random.default_rng(0).integers(0, 9, 500).astype(np.uint8).tobytes())
    for place in range(5, len(good)):
        broken = bytearray(good)
        broken[place] ^= 255
        try:
            plain = decompress(bytes(broken), 500)
        except CorruptCacheError:
            continue
        assert len(plain) == 500, "checksums are the tar's; sizes are always right"


def test_nothing_at_all() -> None:
    assert len(decompress(compress_planes([], zstandard.ZstdCompressor()), 0)) == 0


def test_a_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(CorruptCacheError, match="declares 4 bytes, 5 are expected"):
        decompress(zstandard.compress(b"abcd"), 5)
