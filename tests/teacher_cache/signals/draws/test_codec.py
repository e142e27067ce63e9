"""Draws round-trip as the same multiset; invalid payloads are refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig, DrawsCapture
from schemas.errors import CorruptCacheError
from support.forge import sections, with_changed_bytes, with_sections
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.signals.draws.codec import DrawsCodec
from teacher_cache.signals.draws.record import DrawsSample

POSITIONS, REPEATS, DISTANCES, SYMBOLS, NEW, ENTROPY = 0, 1, 2, 3, 7, 8


def random_sample(positions: list[int], temperatures: int, draws: int, vocabulary: int, seed: int = 0) -> DrawsSample:
    rng = np.random.default_rng(seed)
    shape = (len(positions), temperatures, draws)
    ids = np.minimum(rng.geometric(rng.choice([0.9, 0.02, 1e-5]), shape) - 1, vocabulary - 1).astype(np.int32)
    entropy = rng.uniform(0, np.log(vocabulary), shape[:2]).astype(np.float32)
    return DrawsSample(np.array(positions, np.int32), ids, entropy)


def make_codec(temperatures: int, draws: int, vocabulary: int) -> DrawsCodec:
    capture = DrawsCapture(n=draws, temperatures=[1.0 + t for t in range(temperatures)])
    return DrawsCodec(capture, CodecConfig(), CodeTable(np.random.default_rng(1).permutation(vocabulary)))


@given(
    positions=st.sets(st.integers(0, 60), max_size=10),
    temperatures=st.integers(1, 3),
    draws=st.integers(1, 60),
    vocabulary=st.sampled_from([2, 300, 65_536, 65_537, 248_044]),
    seed=st.integers(0, 1000),
)
@example({0}, 1, 4096, 2, 0)
@example({60}, 1, 4096, 248_044, 2)
@settings(max_examples=60, deadline=None)
def test_round_trip(positions: set[int], temperatures: int, draws: int, vocabulary: int, seed: int) -> None:
    codec = make_codec(temperatures, draws, vocabulary)
    sample = random_sample(sorted(positions), temperatures, draws, vocabulary, seed)
    found = codec.decode(codec.encode(sample), 61)
    np.testing.assert_array_equal(found.positions, sample.positions)
    np.testing.assert_array_equal(np.sort(found.ids, axis=2), np.sort(sample.ids, axis=2))
    assert np.abs(found.entropy - sample.entropy).max(initial=0) <= 0.5 / 1024 + 1e-6
    assert (found.ids.dtype, found.entropy.dtype) == (np.int32, np.float32)


def test_repeats_end_at_tokens_drawn_once() -> None:
    """Rows: 3 and 2 times; twice, then once; 5 times; all once; the most frequent token is the first."""
    rows = [[7, 3, 7, 3, 3], [9, 8, 9, 1, 2], [4] * 5, [5, 6, 7, 8, 9]]
    sample = DrawsSample(np.arange(4, dtype=np.int32), np.array(rows, np.int32)[:, None], np.zeros((4, 1), np.float32))
    codec = make_codec(1, 5, 300)
    payload = codec.encode(sample)
    assert sections(payload)[REPEATS] == bytes([2, 1, 1, 0, 4, 0] + [0] * 6)
    found = codec.decode(payload, 4).ids[:, 0]
    assert [found[0].tolist(), found[1][:2].tolist()] == [[3, 3, 3, 7, 7], [9, 9]]
    np.testing.assert_array_equal(np.sort(found), np.sort(rows))


def test_rows_are_ordered_by_temperature() -> None:
    ids = np.array([[[1], [2]], [[3], [4]]], np.int32)
    sample = DrawsSample(np.array([0, 1], np.int32), ids, np.array([[1, 2], [3, 4]], np.float32))
    codec = DrawsCodec(DrawsCapture(n=1, temperatures=[1, 2]), CodecConfig(), CodeTable(np.arange(300)))
    parts = sections(codec.encode(sample))
    assert (parts[NEW][:4], parts[ENTROPY][4:8]) == (bytes([1, 3, 2, 4]), bytes([4, 12, 8, 16]))
    assert codec.decode(codec.encode(sample), 2).ids.tolist() == ids.tolist()


def test_entropies_that_cannot_be_stored_are_clipped() -> None:
    sample = random_sample([0], 3, 2, 300)
    sample.entropy[0] = [-0.01, 1e9, np.inf]
    codec = make_codec(3, 2, 300)
    assert codec.decode(codec.encode(sample), 1).entropy.tolist() == [[0, *[np.float32((2**24 - 1) / 1024)] * 2]]


CODEC = make_codec(2, 3, 300)
IDS = np.array([[[1, 2, 3], [4, 4, 4]], [[1, 1, 2], [5, 6, 7]], [[8, 8, 8], [9, 9, 1]]], np.int32)
SAMPLE = DrawsSample(np.array([1, 4, 8], np.int32), IDS, np.ones((3, 2), np.float32))
PAYLOAD = CODEC.encode(SAMPLE)
WRONG = {
    "a row beyond the sequence": ({POSITIONS: bytes([0b10010, 0b10])}, "a position: 9, wanted 8"),
    "more rows": ({POSITIONS: bytes([0b10011, 1])}, "rows with repeats: 6, wanted 8"),
    "fewer rows": ({POSITIONS: bytes([0b10010])}, "repeats: 8, wanted 5"),
    "no repeats": ({REPEATS: b""}, "rows with repeats: 0, wanted 6"),
    "one plane and a half of repeats": ({REPEATS: bytes(9)}, "section 1: 9 bytes"),
    "too few repeats": ({REPEATS: bytes(10)}, "rows with repeats: 5, wanted 6"),
    "a repeat too many": ({REPEATS: bytes(14)}, "repeats: 7, wanted 6"),
    "more draws than there are": ({REPEATS: bytes([3] + [0] * 11)}, "draws of a row: 4, wanted 3"),
    "more draws together": ({REPEATS: bytes([1, 1] + [0] * 12)}, "draws of a row: 4, wanted 3"),
    "far more": ({REPEATS: bytes([255] * 12)}, "draws of a row: 65536, wanted 3"),
    "other numbers of tokens": ({REPEATS: bytes(12)}, "rows with enough symbols: 4"),
    "distances of another size": ({DISTANCES: bytes(10)}, "bytes of distances: 10, wanted 12"),
    "no symbols": ({SYMBOLS: b""}, "rows with enough symbols: 0"),
    "codes beyond the vocabulary": ({NEW: bytes([255] * 18)}, "largest code of an id: 65535, wanted 299"),
    "entropies of one temperature": ({ENTROPY: bytes(9)}, "section 8: 9 bytes, wanted 3 "),
    "more than draws of this shape can have": ({ENTROPY: bytes(500)}, "a zstd frame declares"),
}


def test_the_payload_to_be_broken_decodes() -> None:
    assert [len(part) for part in sections(PAYLOAD)] == [2, 16, 12, 12, 0, 0, 0, 18, 18]
    found = CODEC.decode(with_sections(PAYLOAD, {}), 9)
    np.testing.assert_array_equal(np.sort(found.ids), np.sort(IDS))


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_payload_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        CODEC.decode(with_sections(PAYLOAD, changed), 9)


@given(seed=st.integers(0, 1000), vocabulary=st.sampled_from([300, 70_000]), data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_bytes_decode_to_valid_ids_or_are_refused(seed: int, vocabulary: int, data: st.DataObject) -> None:
    codec = make_codec(2, 12, vocabulary)
    payload = codec.encode(random_sample([1, 4, 8], 2, 12, vocabulary, seed))
    parts = with_changed_bytes(sections(payload), data)
    with contextlib.suppress(CorruptCacheError):
        found = codec.decode(with_sections(payload, dict(enumerate(parts))), 9)
        n_rows = len(found.positions)
        assert (found.ids.shape, found.entropy.shape) == ((n_rows, 2, 12), (n_rows, 2))
        assert 0 <= found.ids.min(initial=0) <= found.ids.max(initial=0) < vocabulary
