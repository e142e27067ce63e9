import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import CorruptCacheError
from teacher_cache.codec.planes import compress_planes, decompress_planes, join_planes, split_planes


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
