"""Attention weights round down by less than 1/65535; invalid payloads are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import AttentionCapture, CodecConfig
from schemas.errors import CorruptCacheError
from support.forge import sections, with_sections
from teacher_cache.signals.attention.codec import AttentionCodec
from teacher_cache.signals.attention.record import AttentionSample


def random_sample(positions: list[int], heads: int, keys: int, seed: int = 0) -> AttentionSample:
    """Rows whose largest weights are stored; row t has t + 1 keys."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((len(positions), heads, keys), np.float32)
    places = np.zeros((len(positions), heads, keys), np.int32)
    for p, position in enumerate(positions):
        for h in range(heads):
            n = min(keys, position + 1)
            row = rng.dirichlet(np.full(position + 1, 0.3))
            order = np.argsort(-row)[:n]
            weights[p, h, :n], places[p, h, :n] = row[order], order
    heads_H = rng.permutation(64)[:heads].astype(np.int32)
    return AttentionSample(np.array(positions, np.int32), heads_H, weights, places)


@given(
    positions=st.sets(st.integers(0, 60), max_size=10),
    heads=st.integers(1, 4),
    keys=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_round_trip(positions: set[int], heads: int, keys: int, seed: int) -> None:
    codec = AttentionCodec(AttentionCapture(heads=heads, keys=keys), CodecConfig())
    sample = random_sample(sorted(positions), heads, keys, seed)
    found = codec.decode(codec.encode(sample), 61)
    for name in ("positions", "heads", "keys"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sample, name), err_msg=name)
        assert getattr(found, name).dtype == np.int32
    lost = sample.weights - found.weights
    assert found.weights.dtype == np.float32
    assert lost.min(initial=0) > -1e-6
    assert lost.max(initial=0) < 1 / 65535 + 1e-6
    assert (np.rint(found.weights * 65535).sum(axis=2) <= 65535).all(), "so a remainder exists and is not negative"


def test_a_row_of_one_key_sums_to_1() -> None:
    codec = AttentionCodec(AttentionCapture(heads=1, keys=4), CodecConfig())
    found = codec.decode(codec.encode(random_sample([0], 1, 4)), 1)
    assert found.weights.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


def test_keys_of_three_bytes() -> None:
    position = 2**24 - 1
    codec = AttentionCodec(AttentionCapture(heads=1, keys=2), CodecConfig())
    keys = np.array([[[position, 65_536]]], np.int32)
    weights = np.full((1, 1, 2), 0.5, np.float32)
    sample = AttentionSample(np.array([position], np.int32), np.array([0], np.int32), weights, keys)
    assert codec.decode(codec.encode(sample), 2**24).keys.tolist() == keys.tolist()


CODEC = AttentionCodec(AttentionCapture(heads=2, keys=3), CodecConfig())
SAMPLE = random_sample([1, 4, 8], 2, 3)
PAYLOAD = CODEC.encode(SAMPLE)
N = 3 * 2 * 3
KEYS = sections(PAYLOAD)[3]
WRONG = {
    "a row beyond the sequence": ({0: bytes([0b10010, 0b10])}, "a position: 9, wanted 8"),
    "more rows": ({0: bytes([0b10011, 1])}, "section 2: 36 bytes, wanted 2 "),
    "fewer rows": ({0: bytes([0b10010])}, "section 2: 36 bytes, wanted 2 "),
    "one head": ({1: bytes(2)}, "section 1: 2 bytes, wanted 2 "),
    "three heads": ({1: bytes(6)}, "section 1: 6 bytes, wanted 2 "),
    "one plane of weights": ({2: bytes(N)}, "section 2: 18 bytes, wanted 2 "),
    "two planes of keys": ({3: bytes(2 * N)}, "section 3: 36 bytes, wanted 3 "),
    "a key after the query": ({3: bytes([2]) + KEYS[1:]}, "an attention row has a key after its own position"),
    "a key far after the query": ({3: KEYS[:-1] + b"\1"}, "an attention row has a key after its own position"),
    "weights that add up to 1 and a step": (
        {2: bytes([255, 1, 0] + [0] * (N - 3) + [255] + [0] * (N - 1))},
        "the attention weights of a row sum to more than 1",
    ),
    "weights above 1": ({2: bytes([255] * 2 * N)}, "the attention weights of a row sum to more than 1"),
    "more than rows of this shape can have": ({2: bytes(300)}, "a zstd frame declares"),
}


def test_the_payload_to_be_broken_decodes() -> None:
    assert [len(part) for part in sections(PAYLOAD)] == [2, 2 * 2, 2 * N, 3 * N]
    assert CODEC.decode(with_sections(PAYLOAD, {}), 9).positions.tolist() == [1, 4, 8]


def test_arrays_are_byte_planes_one_section_each() -> None:
    steps = np.floor(SAMPLE.weights.astype(np.float64) * 65535).astype(np.uint16)
    arrays = (SAMPLE.heads, steps, SAMPLE.keys)
    planes = [array.view(np.uint8).reshape(-1, array.itemsize).T for array in arrays]
    wanted = [part[:width].tobytes() for part, width in zip(planes, (2, 2, 3), strict=True)]
    assert sections(PAYLOAD)[1:] == wanted


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_payload_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        CODEC.decode(with_sections(PAYLOAD, changed), 9)
