"""Attention rows lose less than a step of 1/65535; with their remainder they sum to 1; wrong payloads are refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import ATTENTION_SCHEMA
from schemas.cache_config import AttentionCapture, CodecConfig
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from teacher_cache.codec.attention import AttentionCodec
from teacher_cache.records import AttentionSample


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


def test_a_row_of_one_key_is_whole() -> None:
    codec = AttentionCodec(AttentionCapture(heads=1, keys=4), CodecConfig())
    found = codec.decode(codec.encode(random_sample([0], 1, 4)), 1)
    assert found.weights.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


def test_keys_far_into_a_long_sequence() -> None:
    position = 2**24 - 1
    codec = AttentionCodec(AttentionCapture(heads=1, keys=2), CodecConfig())
    keys = np.array([[[position, 65_536]]], np.int32)
    weights = np.full((1, 1, 2), 0.5, np.float32)
    sample = AttentionSample(np.array([position], np.int32), np.array([0], np.int32), weights, keys)
    assert codec.decode(codec.encode(sample), 2**24).keys.tolist() == keys.tolist()


CODEC = AttentionCodec(AttentionCapture(heads=2, keys=3), CodecConfig())
ROW = columns(CODEC.encode(random_sample([1, 4, 8], 2, 3)))
N = 3 * 2 * 3
PLANES = zstandard.decompress(ROW["frame"])
LATE_KEY = PLANES[: 2 * N] + bytes([2]) + PLANES[2 * N + 1 :]  # of the first row, which is row 1
HEAVY = bytes([255] * 2 * N) + PLANES[2 * N :]
WRONG = {
    "a row beyond the sequence": ({"positions": [1, 4, 9]}, "positions"),
    "rows that fall": ({"positions": [4, 1, 8]}, "positions"),
    "more rows": ({"positions": [0, 1, 4, 8]}, "sizes"),
    "fewer rows": ({"positions": [1, 4]}, "together at most"),
    "one head": ({"heads": [1]}, "heads"),
    "a head that cannot be": ({"heads": [1, 65_536]}, "heads"),
    "other sizes": ({"sizes": [2 * N - 1, 3 * N + 1]}, "sizes"),
    "a key after the query": ({"frame": zstandard.compress(LATE_KEY)}, "later token"),
    "weights above 1": ({"frame": zstandard.compress(HEAVY)}, "more than 1"),
    "a frame of another size": ({"frame": zstandard.compress(PLANES[1:])}, "frame"),
}


def test_the_row_that_is_broken_below_is_good() -> None:
    assert ROW["sizes"] == [2 * N, 3 * N]
    CODEC.decode(arrow_stream(ATTENTION_SCHEMA, [ROW]), 9)


@pytest.mark.parametrize("name", WRONG)
def test_a_payload_that_cannot_be_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=message):
        CODEC.decode(arrow_stream(ATTENTION_SCHEMA, [ROW | changed]), 9)
