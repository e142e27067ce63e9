"""Hidden states come back bit for bit; payloads that contradict their cache are refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import HIDDEN_SCHEMA
from schemas.cache_config import CodecConfig, HiddenCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from teacher_cache.codec.hidden import HiddenCodec, hidden_shapes
from teacher_cache.records import HiddenSample


def random_sample(positions: list[int], capture: HiddenCapture, channels: int, seed: int = 0) -> HiddenSample:
    rng = np.random.default_rng(seed)
    n_scales, n_outliers = hidden_shapes(capture, channels)
    row = (len(positions), len(capture.layers))
    kind = np.int8 if capture.dtype == "int8" else np.int16

    def bits(n: int, dtype: type) -> np.ndarray:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, (*row, n), dtype, endpoint=True)

    arrays = (bits(channels, kind), bits(n_scales, np.int16), bits(n_outliers, np.int16), bits(n_outliers, np.int16))
    return HiddenSample(np.array(positions, np.int32), *arrays)


@given(
    positions=st.sets(st.integers(0, 39), max_size=12),
    layers=st.sampled_from([[1], [3, 1], [0.25, 0.5, 0.75]]),
    dtype=st.sampled_from(["int8", "bfloat16", "float16"]),
    channels=st.sampled_from([1, 31, 64, 100]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_round_trip(positions: set[int], layers: list, dtype: str, channels: int, seed: int) -> None:
    capture = HiddenCapture(layers=layers, dtype=dtype)
    codec = HiddenCodec(capture, CodecConfig(), len(capture.layers), channels)
    sample = random_sample(sorted(positions), capture, channels, seed)
    found = codec.decode(codec.encode(sample), 40)
    for name, array in vars(sample).items():
        assert getattr(found, name).dtype == array.dtype, name
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


CAPTURE = HiddenCapture(layers=[1, 2])
CODEC = HiddenCodec(CAPTURE, CodecConfig(), len(CAPTURE.layers), 64)
ROW = columns(CODEC.encode(random_sample([0, 3, 8], CAPTURE, 64)))
SIZES = [3 * 2 * 64, 3 * 2 * 2 * 2, 3 * 2 * 2, 3 * 2 * 2]
WRONG = {
    "a row beyond the sequence": ({"positions": [0, 3, 9]}, "positions"),
    "rows that fall": ({"positions": [3, 0, 8]}, "positions"),
    "a row twice": ({"positions": [0, 8, 8]}, "positions"),
    "fewer rows": ({"positions": [0, 3]}, "together at most"),
    "more rows": ({"positions": [0, 1, 3, 8]}, "sizes"),
    "three sections": ({"sizes": SIZES[:3]}, "wanted 4"),
    "other sizes": ({"sizes": [SIZES[0] - 1, SIZES[1] + 1, *SIZES[2:]]}, "sizes"),
    "a negative size": ({"sizes": [-1, 1, 0, 0]}, "sizes"),
    "a frame of another size": ({"frame": zstandard.compress(bytes(sum(SIZES) - 1))}, "frame"),
    "no frame": ({"frame": b""}, "frame"),
}


def test_the_row_that_is_broken_below_is_good() -> None:
    assert ROW["sizes"] == SIZES
    CODEC.decode(arrow_stream(HIDDEN_SCHEMA, [ROW]), 9)


@pytest.mark.parametrize("name", WRONG)
def test_a_payload_that_contradicts_its_cache_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=message):
        CODEC.decode(arrow_stream(HIDDEN_SCHEMA, [ROW | changed]), 9)
