"""Draws come back as the same multiset; wrong payloads are refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import DRAWS_SCHEMA
from schemas.cache_config import CodecConfig, DrawsCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns
from teacher_cache.codec.draws import DrawsCodec
from teacher_cache.records import DrawsSample


def random_sample(positions: list[int], temperatures: int, draws: int, vocabulary: int, seed: int = 0) -> DrawsSample:
    rng = np.random.default_rng(seed)
    shape = (len(positions), temperatures, draws)
    ids = np.minimum(rng.geometric(0.02, shape) - 1, vocabulary - 1).astype(np.int32)
    entropy = rng.uniform(0, np.log(vocabulary), shape[:2]).astype(np.float32)
    return DrawsSample(np.array(positions, np.int32), ids, entropy)


def make_codec(temperatures: int, draws: int, vocabulary: int) -> DrawsCodec:
    capture = DrawsCapture(n=draws, temperatures=[1.0 + t for t in range(temperatures)])
    table = np.random.default_rng(1).permutation(vocabulary).astype(np.uint32)
    return DrawsCodec(capture, CodecConfig(), table)


@given(
    positions=st.sets(st.integers(0, 60), max_size=10),
    temperatures=st.integers(1, 3),
    draws=st.integers(1, 60),
    vocabulary=st.sampled_from([2, 300, 65_536, 65_537, 248_044]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(positions: set[int], temperatures: int, draws: int, vocabulary: int, seed: int) -> None:
    codec = make_codec(temperatures, draws, vocabulary)
    sample = random_sample(sorted(positions), temperatures, draws, vocabulary, seed)
    found = codec.decode(codec.encode(sample), 61)
    np.testing.assert_array_equal(found.positions, sample.positions)
    np.testing.assert_array_equal(np.sort(found.ids, axis=2), np.sort(sample.ids, axis=2))
    assert np.abs(found.entropy - sample.entropy).max(initial=0) <= 0.5 / 1024 + 1e-6
    assert (found.ids.dtype, found.entropy.dtype) == (np.int32, np.float32)


CODEC = make_codec(2, 3, 300)
ROW = columns(CODEC.encode(random_sample([1, 4, 8], 2, 3, 300)))
PLANES = zstandard.decompress(ROW["frame"])
N = 3 * 2 * 3
TOO_LARGE = bytes([255] * 2 * N) + PLANES[2 * N :]
WRONG = {
    "a row beyond the sequence": ({"positions": [1, 4, 9]}, "positions"),
    "rows that fall": ({"positions": [4, 1, 8]}, "positions"),
    "more rows": ({"positions": [0, 1, 4, 8]}, "sizes"),
    "fewer rows": ({"positions": [1, 4]}, "together at most"),
    "other sizes": ({"sizes": [2 * N - 1, 3 * 6 + 1]}, "sizes"),
    "a code beyond the vocabulary": ({"frame": zstandard.compress(TOO_LARGE)}, "largest code of the draws"),
    "a frame of another size": ({"frame": zstandard.compress(PLANES[1:])}, "frame"),
}


def test_the_row_that_is_broken_below_is_good() -> None:
    assert ROW["sizes"] == [2 * N, 3 * 6]
    CODEC.decode(arrow_stream(DRAWS_SCHEMA, [ROW]), 9)


@pytest.mark.parametrize("name", WRONG)
def test_a_payload_that_cannot_be_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=message):
        CODEC.decode(arrow_stream(DRAWS_SCHEMA, [ROW | changed]), 9)
