"""Hidden states round-trip bit for bit; payloads inconsistent with their cache are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig, HiddenCapture
from schemas.errors import CorruptCacheError
from support.forge import sections, with_sections
from teacher_cache.signals.hidden.codec import HiddenCodec, hidden_shapes
from teacher_cache.signals.hidden.record import HiddenSample


def random_sample(positions: list[int], capture: HiddenCapture, channels: int, seed: int = 0) -> HiddenSample:
    rng = np.random.default_rng(seed)
    n_values, n_scales, n_outliers = hidden_shapes(capture, channels)
    row = (len(positions), len(capture.layers))
    kind = np.int8 if capture.has_scales else np.int16

    def bits(n: int, dtype: type) -> np.ndarray:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, (*row, n), dtype, endpoint=True)

    arrays = (bits(n_values, kind), bits(n_scales, np.int16), bits(n_outliers, np.int16), bits(n_outliers, np.int16))
    return HiddenSample(np.array(positions, np.int32), *arrays)


@given(
    positions=st.sets(st.integers(0, 39), max_size=12),
    layers=st.sampled_from([[1], [3, 1], [0.25, 0.5, 0.75]]),
    dtype=st.sampled_from(["int8", "int4", "float8_e4m3", "bfloat16", "float16"]),
    channels=st.sampled_from([1, 31, 64, 100]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_round_trip(positions: set[int], layers: list, dtype: str, channels: int, seed: int) -> None:
    capture, channels = HiddenCapture(layers=layers, dtype=dtype), channels + channels % 2 * (dtype == "int4")
    codec = HiddenCodec(capture, CodecConfig(), len(capture.layers), channels)
    sample = random_sample(sorted(positions), capture, channels, seed)
    found = codec.decode(codec.encode(sample), 40)
    for name, array in vars(sample).items():
        assert getattr(found, name).dtype == array.dtype, name
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


CAPTURE = HiddenCapture(layers=[1, 2])
CODEC = HiddenCodec(CAPTURE, CodecConfig(), len(CAPTURE.layers), 64)
PAYLOAD = CODEC.encode(random_sample([0, 3, 8], CAPTURE, 64))
SIZES = [2, 3 * 2 * 64, 3 * 2 * 2 * 2, 3 * 2 * 2, 3 * 2 * 2]
WRONG = {
    "a row beyond the sequence": ({0: bytes([0b1001, 0b10])}, "a position: 9, wanted 8"),
    "fewer rows": ({0: bytes([0b1001])}, "section 1: 384 bytes, wanted 1 "),
    "more rows": ({0: bytes([0b1011, 1])}, "section 1: 384 bytes, wanted 1 "),
    "no rows": ({0: b""}, "section 1: 384 bytes, wanted 1 "),
    "no values": ({1: b""}, "section 1: 0 bytes, wanted 1 "),
    "scales of other groups": ({2: bytes(12)}, "section 2: 12 bytes, wanted 2 "),
    "other outliers": ({3: bytes(24), 4: bytes(24)}, "section 3: 24 bytes, wanted 2 "),
    "half an outlier": ({4: bytes(11)}, "section 4: 11 bytes, wanted 2 "),
    "more than rows of this shape can have": ({1: bytes(2000)}, "a zstd frame declares"),
}


def test_the_payload_to_be_broken_decodes() -> None:
    assert [len(part) for part in sections(PAYLOAD)] == SIZES
    assert CODEC.decode(with_sections(PAYLOAD, {}), 9).positions.tolist() == [0, 3, 8]


@pytest.mark.parametrize("name", WRONG)
def test_a_payload_inconsistent_with_its_cache_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        CODEC.decode(with_sections(PAYLOAD, changed), 9)


def test_arrays_are_byte_planes_one_section_each() -> None:
    sample = random_sample([0, 3, 8], CAPTURE, 64)
    arrays = (sample.values, sample.scales, sample.outlier_index, sample.outliers)
    planes = [array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes() for array in arrays]
    assert sections(PAYLOAD)[1:] == planes


@pytest.mark.parametrize("written", ["int8", "int4", "bfloat16"])
def test_a_payload_of_another_dtype_is_refused(written: str) -> None:
    codecs = {
        dtype: HiddenCodec(HiddenCapture(layers=[1], dtype=dtype), CodecConfig(), 1, 64)
        for dtype in ("int8", "int4", "bfloat16")
    }
    payload = codecs.pop(written).encode(random_sample([0, 3], HiddenCapture(layers=[1], dtype=written), 64))
    with pytest.raises(CorruptCacheError, match="section 1"):
        codecs.popitem()[1].decode(payload, 9)
