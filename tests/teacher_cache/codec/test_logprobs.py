"""Log-probabilities are off by half a step at most; inconsistent sections are refused."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig
from schemas.errors import CorruptCacheError
from support.forge import frame_of, with_changed_bytes
from teacher_cache.codec.compiled import refused_as_corrupt
from teacher_cache.codec.logprobs import (
    FLOATS,
    FloatDtype,
    encode_logprobs,
    fill_float_logprobs,
    fill_logprobs,
    from_bits,
    most_bytes,
    to_bits,
)
from teacher_cache.codec.sections import Sections

EXCESSES = 3


def falling(seed: int, n_rows: int, k: int, spread: float = 1.0, ragged: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [P, K], NaN beyond the counts [P]."""
    rng = np.random.default_rng(seed)
    counts = (rng.integers(1, k + 1, n_rows) if ragged else np.full(n_rows, k)).astype(np.int32)
    logprobs = -np.cumsum(rng.exponential(spread, (n_rows, k)), axis=1).astype(np.float32)
    return np.where(np.arange(k) < counts[:, None], logprobs, np.float32(np.nan)), counts


def in_steps(steps_per_nat: int) -> CodecConfig:
    return CodecConfig(logprob_steps_per_nat=steps_per_nat)


def encode(logprobs: np.ndarray, counts: np.ndarray, steps_per_nat: int = 16) -> list[bytes]:
    return [section.tobytes() for section in encode_logprobs(logprobs, counts, in_steps(steps_per_nat))]


def decode(parts: list[bytes], counts: np.ndarray, k: int, steps_per_nat: int = 16) -> np.ndarray:
    """Decode into every second row of an array of 77, to detect writes to the rows around them."""
    logprobs = np.full((2 * len(counts) + 1, k), 77, np.float32)
    rows = np.arange(1, 2 * len(counts), 2, dtype=np.int32)
    sections = Sections(frame_of(parts), 4, sum(map(len, parts)))
    try:
        with refused_as_corrupt():
            fill_logprobs(sections.content, sections.starts, steps_per_nat, rows, counts, logprobs)
    finally:
        assert (logprobs[::2] == 77).all(), "rows that are not asked for are not touched"
    return logprobs[1::2]


@given(
    seed=st.integers(0, 10**6),
    n_rows=st.integers(0, 30),
    k=st.integers(1, 70),
    spread=st.sampled_from([0.0, 0.01, 1.0, 40.0]),
    ragged=st.booleans(),
    steps_per_nat=st.sampled_from([1, 16, 100, 1024]),
)
@example(0, 1, 1, 1.0, False, 16)
@settings(max_examples=100, deadline=None)
def test_round_trip(seed: int, n_rows: int, k: int, spread: float, ragged: bool, steps_per_nat: int) -> None:
    logprobs, counts = falling(seed, n_rows, k, spread, ragged)
    parts = encode(logprobs, counts, steps_per_nat)
    found = decode(parts, counts, k, steps_per_nat)
    stored = np.arange(k) < counts[:, None]
    assert (found[~stored] == -np.inf).all()
    wanted = np.maximum(logprobs[stored].astype(np.float64), 6 - 65535 / steps_per_nat)
    step = np.select([wanted > -1 / 4, wanted > -1], [1 / 16, 1 / 4], 1) / steps_per_nat
    assert (np.abs(found[stored] - wanted) <= step / 2 + 3e-7 * np.abs(wanted)).all()
    assert sum(map(len, parts)) <= n_rows * most_bytes(k, in_steps(steps_per_nat))


def meaning(steps: np.ndarray, steps_per_nat: int) -> np.ndarray:
    """Decoded values of numbers of steps, each in a row of its own."""
    excesses = (steps[steps >= 3] - 3).astype(np.uint16).view(np.uint8).reshape(-1, 2).T
    parts = [np.minimum(steps, 3).astype(np.uint8).tobytes(), b"", b"", excesses.tobytes()]
    return decode(parts, np.ones(len(steps), np.int32), 1, steps_per_nat)[:, 0]


def test_steps_are_4_times_finer_above_minus_1_and_16_times_above_minus_a_quarter() -> None:
    nats = meaning(np.arange(65_536), 2)
    assert (nats[[0, 8, 14, 15, 65_535]] == [0, -1 / 4, -1, -1.5, 6 - 65_535 / 2]).all()
    np.testing.assert_array_equal(np.diff(nats[:30]), [-1 / 32] * 8 + [-1 / 8] * 6 + [-1 / 2] * 15)


@pytest.mark.parametrize(("steps_per_nat", "error"), [(1, 0), (16, 0), (1024, 0), (100, 1.3e-7), (17, 1.3e-7)])
def test_steps_decode_exactly_for_powers_of_two_else_up_to_rounding(steps_per_nat: int, error: float) -> None:
    nats = np.arange(65_536) / steps_per_nat
    wanted = -np.maximum(np.maximum(nats / 16, nats / 4 - 3 / 4), nats - 6)
    found = meaning(np.arange(65_536), steps_per_nat)
    assert (np.abs(found - wanted.astype(np.float32)) <= error * np.abs(wanted)).all()


def test_the_bytes_are_as_documented() -> None:
    """Differences 0 1 2 3, and 3 0 300 with the last place empty; 3 and above take an excess."""
    rows = [[0, -1 / 16, -3 / 16, -3 / 4], [-3 / 16, -3 / 16, -297, 0]]
    logprobs, counts = np.array(rows, np.float32), np.array([4, 3], np.int32)
    parts = [bytes([0b11_10_01_00, 0b00_11_00_11]), b"", b"", bytes([0, 0, 297 - 256, 0, 0, 1])]
    assert encode(logprobs, counts, 1) == parts
    assert decode(parts, counts, 4, 1).tolist() == [rows[0], [*rows[1][:3], -np.inf]]


@pytest.mark.parametrize(("gap", "planes"), [(0, 0), (2, 0), (3, 1), (258, 1), (259, 2), (65_535, 2)])
def test_excesses_exist_above_2_and_take_a_second_plane_above_258(gap: int, planes: int) -> None:
    logprobs, counts = np.tile(meaning(np.array([0, gap]), 16), (5, 1)), np.full(5, 2, np.int32)
    parts = encode(logprobs, counts)
    assert len(parts[EXCESSES]) == planes * 5
    np.testing.assert_array_equal(decode(parts, counts, 2), logprobs)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1, 0, 0]), (4, [1, 0, 0]), (5, [2, 0, 0]), (8, [2, 0, 0]), (9, [2, 1, 0]), (24, [2, 4, 0]), (25, [2, 4, 1]),
     (70, [2, 4, 12])],
)  # fmt: skip
def test_four_differences_share_a_byte_and_places_are_grouped(count: int, sizes: list[int]) -> None:
    logprobs, counts = falling(0, 5, 70)[0], np.full(5, count, np.int32)
    assert [len(part) for part in encode(logprobs, counts)[:EXCESSES]] == [5 * size for size in sizes]


def test_an_infinite_or_tiny_probability_is_clipped_not_wrapped() -> None:
    logprobs, counts = np.array([[0, -1e6], [-1e30, -np.inf], [0, -65536 / 16]], np.float32), np.full(3, 2, np.int32)
    lowest = 6 - 65535 / 16
    assert decode(encode(logprobs, counts), counts, 2).tolist() == [[0, lowest], [lowest, lowest], [0, lowest]]


@pytest.mark.parametrize(
    ("row", "message"), [([-1, -2, -1.5], "descend"), ([0.5, -1, -2], "at most 0"), ([-1, np.nan, -2], "NaN")]
)
@pytest.mark.parametrize("logprobs", ["steps", "float32"])
def test_invalid_values_are_not_encoded(row: list[float], message: str, logprobs: str) -> None:
    rows, codec = np.array([[-1, -2, -3], row], np.float32), CodecConfig(logprobs=logprobs)
    encode_logprobs(rows[:1], np.array([3], np.int32), codec)
    with pytest.raises(ValueError, match=message):
        encode_logprobs(rows, np.array([3, 3], np.int32), codec)


SPECIAL = [0, -0.0, -1, -1e-40, -3e-8, -1.00390625, -1.01171875, -65504, -1e30, -np.inf]


@given(values=st.lists(st.floats(-5000, 0, width=32) | st.sampled_from(SPECIAL), max_size=30))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:overflow")
def test_floats_are_rounded_as_torch_does(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    dtypes: list[tuple[FloatDtype, type]] = [("bfloat16", np.uint16), ("float16", np.uint16), ("float32", np.uint32)]
    for dtype, kind in dtypes:
        rounded = torch.from_numpy(floats).to(getattr(torch, dtype))
        bits = to_bits(floats, dtype)
        assert bits.dtype == kind
        assert bits.tobytes() == rounded.view(torch.int32 if kind is np.uint32 else torch.int16).numpy().tobytes()
        assert from_bits(bits, dtype).tobytes() == rounded.float().numpy().tobytes()


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_floats_are_byte_planes_in_the_first_section(dtype: FloatDtype, width: int) -> None:
    codec, (logprobs, counts) = CodecConfig(logprobs=dtype), falling(0, 5, 30, ragged=True)
    parts = encode_logprobs(logprobs, counts, codec)
    bits = to_bits(logprobs[~np.isnan(logprobs)], dtype)
    assert parts[0].tobytes() == planes_of(bits)
    assert [part.size for part in parts] == [counts.sum() * width, 0, 0, 0]
    assert most_bytes(30, codec) == 30 * width


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_valid_16_bit_float_is_read(dtype: FloatDtype) -> None:
    """All 16-bit values at most 0, including zeros, subnormals and minus infinity; in rows of two and of one."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    bits = halves.astype(np.uint32) << 16 if dtype == "float32" else halves
    bits = bits[from_bits(bits, dtype) <= 0]
    counts = np.full(-(-len(bits) // 2), 2, np.int32)
    counts[-1] -= len(bits) % 2
    content, starts = np.frombuffer(planes_of(bits), np.uint8), np.array([0] + [bits.nbytes] * 4)
    rows = np.arange(len(counts), dtype=np.int32)
    found = np.full((len(counts), 2), 7, np.float32)
    fill_float_logprobs(content, starts, FLOATS.index(dtype), rows, counts, found)
    stored = np.arange(2) < counts[:, None]
    assert found[stored].tobytes() == from_bits(bits, dtype).tobytes()
    assert (found[~stored] == -np.inf).all()


@pytest.mark.parametrize("bits", [0x0001, 0x3C00, 0x7C00, 0x7E00, 0xFE00])
def test_halves_above_0_and_nans_are_refused(bits: int) -> None:
    content, starts = np.frombuffer(planes_of(np.array([bits], np.uint16)), np.uint8), np.array([0, 2, 2, 2, 2])
    one, found = np.ones(1, np.int32), np.empty((1, 1), np.float32)
    with pytest.raises(ValueError, match="log-probabilities above 0 or not a number"):
        fill_float_logprobs(content, starts, FLOATS.index("float16"), one - 1, one, found)


def planes_of(bits: np.ndarray) -> bytes:
    return bits.view(np.uint8).reshape(-1, bits.itemsize).T.tobytes()


LARGE = bytes([0b00_11_11_11] * 4)
WRONG = {
    "no differences": ({0: b""}, "rows with enough differences: 0, wanted 4"),
    "a byte of differences too few": ({0: bytes(3)}, "rows with enough differences: 3, wanted 4"),
    "a byte of differences too many": ({0: bytes(5)}, "bytes of differences: 5, wanted 4"),
    "a byte at places that no row has": ({1: bytes(1)}, "bytes of differences: 5, wanted 4"),
    "a byte at other such places": ({2: bytes(1)}, "bytes of differences: 5, wanted 4"),
    "too few excesses": ({0: LARGE, 3: bytes(11)}, "bytes of excesses: 11, wanted 12"),
    "too many excesses": ({0: LARGE, 3: bytes(13)}, "bytes of excesses: 13, wanted 12"),
    "a plane and a half of excesses": ({0: LARGE, 3: bytes(18)}, "bytes of excesses: 18, wanted 12"),
    "three planes of excesses": ({0: LARGE, 3: bytes(36)}, "bytes of excesses: 36, wanted 12"),
    "a sum that no step number is": (
        {0: bytes([0, 0b11_11, 0, 0]), 3: bytes([0xF9, 1, 0xFF, 0])},
        "steps of a log-probability: 65536, wanted 65535",
    ),
    "excesses of nothing": ({3: bytes(4)}, "bytes of excesses: 4, wanted 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_inconsistent_sections_are_refused(name: str) -> None:
    counts = np.full(4, 3, np.int32)
    good = {0: bytes(4), 1: b"", 2: b"", 3: b""}
    assert decode(list(good.values()), counts, 3).tolist() == [[0, 0, 0]] * 4
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        decode(list((good | changed).values()), counts, 3)


@pytest.mark.parametrize("number", range(3))
def test_a_section_of_another_length_is_refused(number: int) -> None:
    counts = np.full(8, 30, np.int32)
    parts = encode(np.zeros((8, 30), np.float32), counts)
    assert parts == [bytes(8 * 2), bytes(8 * 4), bytes(8 * 2), b""]
    size = len(parts[number])
    for more, message in (
        (-1, "rows with enough differences: 7"),
        (1, "bytes of differences: 65, wanted 64"),
    ):
        parts[number] = bytes(size + more)
        with pytest.raises(CorruptCacheError, match=f"^{message}"):
            decode(parts, counts, 30)


@given(seed=st.integers(0, 10**6), ragged=st.booleans(), spread=st.sampled_from([0.1, 20.0]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_decode_within_bounds_or_are_refused(
    seed: int, ragged: bool, spread: float, data: st.DataObject
) -> None:
    logprobs, counts = falling(seed, 8, 30, spread, ragged)
    parts = with_changed_bytes(encode(logprobs, counts), data)
    with contextlib.suppress(CorruptCacheError):
        found = decode(parts, counts, 30)
        stored = np.arange(30) < counts[:, None]
        assert ((found[stored] <= 0) & np.isfinite(found[stored])).all()
        assert (found[~stored] == -np.inf).all()
