"""The codec's errors stay within the documented bounds; payloads that decode to no valid sample are refused."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import sections, with_changed_bytes, with_sections
from support.synthetic import logits_sample
from teacher_cache.codec.logprobs import FLOAT_BYTES, FloatDtype
from teacher_cache.codec.permutation import CodeTable, build_code_table
from teacher_cache.codec.rows import Rows
from teacher_cache.records import LogitsSample
from teacher_cache.signals.logits.codec import LogitsCodec

POSITIONS, COUNTS, DISTANCES, SYMBOLS, LOWS, NEW, DIFFERENCES, EXCESSES, SCALARS = 0, 1, 2, 3, 6, 7, 8, 11, 12
MAX_LOGPROB_STEPS, MAX_SCALAR_STEPS = 2**16 - 1, 2**23 - 1


@lru_cache
def table(vocab_size: int) -> CodeTable:
    return CodeTable(build_code_table(np.random.default_rng(vocab_size).integers(0, 5, vocab_size)))


def make_codec(
    vocab_size: int, k: int, temperatures: tuple[float, ...] = (1.0, 2.0), codec: CodecConfig | None = None
) -> LogitsCodec:
    capture = LogitsCapture(k=k, temperatures=list(temperatures))
    return LogitsCodec(capture, codec or CodecConfig(), table(vocab_size))


def make_sample(
    seed: int,
    tokens: int,
    vocab_size: int,
    k: int,
    temperatures: tuple[float, ...] = (1.0, 2.0),
    spread: float = 1.0,
    ragged: bool = False,
    stored: float = 1.0,
) -> LogitsSample:
    """Random values within a LogitsSample's conventions; of all rows, a share of ``stored``.

    Ids are taken from few, so that they stand in several rows; both ends of the vocabulary are among them.
    """
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(tokens) < stored).astype(np.int32)
    n_rows = len(positions)
    counts = rng.integers(1, k + 1, n_rows) if ragged else np.full(n_rows, k)
    beyond = np.arange(k) >= counts[:, None]
    pool = np.union1d([0, vocab_size - 1], rng.choice(vocab_size, min(vocab_size, 3 * k), replace=False))
    ids = rng.permuted(np.tile(pool, (n_rows, 1)), axis=1)[:, :k]
    next_logprob = -rng.exponential(3, n_rows)
    next_logprob[rng.random(n_rows) < 0.1] = -np.inf
    log_partition = rng.normal(0, 30, (n_rows, len(temperatures)))
    log_partition[:, temperatures.index(1.0)] = 0
    return LogitsSample(
        num_tokens=tokens,
        positions=positions,
        counts=counts.astype(np.int32),
        ids=np.where(beyond, 0, ids).astype(np.int32),
        logprobs=np.where(beyond, -np.inf, -np.cumsum(rng.exponential(spread, (n_rows, k)), axis=1)).astype(np.float32),
        next_logprob=np.where(positions == tokens - 1, np.nan, next_logprob).astype(np.float32),
        log_partition=log_partition.astype(np.float32),
    )


def rows_of(tokens: int, k: int, temperatures: int) -> Rows:
    """Rows to decode into, preset to values that no row can have."""
    return Rows(
        counts=np.full(tokens, 77, np.int32),
        ids=np.full((tokens, k), 77, np.int32),
        logprobs=np.full((tokens, k), 77, np.float32),
        next_logprob=np.full(tokens, 77, np.float32),
        log_partition=np.full((tokens, temperatures), 77, np.float32),
    )


def assert_within_half_a_step(found: np.ndarray, wanted: np.ndarray, steps_per_nat: int, most_steps: int) -> None:
    """Equal up to rounding to steps (and to float32), values beyond ± the most steps being clipped."""
    wanted = wanted.astype(np.float64).clip(-most_steps / steps_per_nat, most_steps / steps_per_nat)
    allowed = 0.5 / steps_per_nat + 3e-7 * np.abs(wanted)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) <= allowed).all()


def check_round_trip(
    sample: LogitsSample,
    vocab_size: int,
    k: int,
    temperatures: tuple[float, ...] = (1.0, 2.0),
    config: CodecConfig | None = None,
) -> bytes:
    config = config or CodecConfig()
    codec = make_codec(vocab_size, k, temperatures, config)
    payload = codec.encode(sample)
    found = codec.decode(payload, sample.num_tokens)
    assert found.num_tokens == sample.num_tokens
    for name in ("positions", "counts", "ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sample, name), err_msg=name)
        assert getattr(found, name).dtype == np.int32
    stored = np.arange(k) < sample.counts[:, None]
    assert (found.logprobs[~stored] == -np.inf).all()
    steps = config.logprob_steps_per_nat
    assert_within_half_a_step(found.logprobs[stored], sample.logprobs[stored], steps, MAX_LOGPROB_STEPS - 6 * steps)
    steps = config.scalar_steps_per_nat
    last = sample.positions == sample.num_tokens - 1
    assert np.isnan(found.next_logprob[last]).all()
    assert_within_half_a_step(found.next_logprob[~last], sample.next_logprob[~last], steps, MAX_SCALAR_STEPS)
    assert_within_half_a_step(found.log_partition, sample.log_partition, steps, MAX_SCALAR_STEPS)
    assert codec.encode(sample) == payload
    return payload


@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 40),
    vocab_size=st.sampled_from([2, 255, 256, 257, 5000, 65_535, 65_536, 65_537, 200_001]),
    k=st.integers(1, 33),
    temperatures=st.sampled_from([(1.0,), (1.0, 3.0), (3.0, 1.0), (0.5, 1.0, 2.0), (3.0, 2.0, 1.0)]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 40.0]),
    ragged=st.booleans(),
    stored=st.sampled_from([0.1, 0.7, 1.0]),
    logprob_steps=st.sampled_from([1, 16, 100, 1024]),
    scalar_steps=st.sampled_from([16, 1000, 1024, 65536]),
)
@example(0, 1, 65_537, 1, (1.0,), 40.0, False, 1.0, 1024, 1024)
@example(0, 1, 65_536, 1, (1.0,), 1.0, True, 1.0, 16, 1024)
@settings(max_examples=120, deadline=None)
def test_round_trip(
    seed: int, tokens: int, vocab_size: int, k: int, temperatures: tuple[float, ...], spread: float, ragged: bool,
    stored: float, logprob_steps: int, scalar_steps: int,
) -> None:  # fmt: skip
    config, k = CodecConfig(logprob_steps_per_nat=logprob_steps, scalar_steps_per_nat=scalar_steps), min(k, vocab_size)
    sample = make_sample(seed, tokens, vocab_size, k, temperatures, spread, ragged, stored)
    check_round_trip(sample, vocab_size, k, temperatures, config)


@pytest.mark.parametrize(("ragged", "planes"), [(False, 0), (True, 2)])
def test_counts_are_left_out_when_all_are_k(ragged: bool, planes: int) -> None:
    payload = check_round_trip(make_sample(0, 20, 300, 5, ragged=ragged), 300, 5)
    assert len(sections(payload)[COUNTS]) == planes * 20


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 3.0), (0.5, 3.0, 1.0)])
def test_the_partition_of_temperature_1_is_not_stored(temperatures: tuple[float, ...]) -> None:
    payload = check_round_trip(make_sample(0, 9, 300, 5, temperatures), 300, 5, temperatures)
    assert len(sections(payload)[SCALARS]) == 3 * 9 * len(temperatures), "with the realised token's"


def test_scalars_are_three_byte_planes_of_steps_by_column() -> None:
    sample = make_sample(0, 2, 300, 1, (2.0, 1.0, 3.0))
    sample.next_logprob[0] = -5
    sample.log_partition[:] = [[-1, 0, 100], [2, 0, -100]]
    steps = np.array([5, 0, -1, 2, 100, -100]) * 1024
    planes = b"".join((steps >> 8 * plane & 255).astype(np.uint8).tobytes() for plane in range(3))
    assert sections(check_round_trip(sample, 300, 1, (2.0, 1.0, 3.0)))[SCALARS] == planes


@pytest.mark.parametrize("positions", [[], [0], [4], [1, 3], [0, 1, 2, 3], [2, 3, 4]])
def test_rows_that_are_not_stored_are_filled(positions: list[int]) -> None:
    every, k = make_sample(0, 5, 300, 3, ragged=True), 3
    names = Rows._fields
    sample = replace(every, positions=np.array(positions, np.int32), **{n: getattr(every, n)[positions] for n in names})
    codec = make_codec(300, k)
    found = codec.decode(codec.encode(sample), 5)
    rows = rows_of(5, k, 2)
    codec.decode_into(codec.encode(sample), rows)
    assert found.positions.tolist() == positions
    missing = np.setdiff1d(np.arange(5), positions)
    nothing = {"counts": 0, "ids": 0, "logprobs": -np.inf, "next_logprob": np.nan, "log_partition": 0}
    for name in names:
        np.testing.assert_array_equal(getattr(rows, name)[positions], getattr(found, name), err_msg=name)
        filler = np.full_like(getattr(rows, name)[missing], nothing[name])
        np.testing.assert_array_equal(getattr(rows, name)[missing], filler, err_msg=name)
    check_round_trip(sample, 300, k)


def test_a_sequence_without_rows_stores_only_section_sizes() -> None:
    payload = check_round_trip(make_sample(0, 5, 300, 3, stored=0.0), 300, 3)
    assert sections(payload) == [b""] * 13


def test_an_infinite_or_tiny_probability_is_clipped_not_wrapped() -> None:
    codec = make_codec(300, 2, (3.0, 1.0, 2.0))
    sample = make_sample(0, 4, 300, 2, (3.0, 1.0, 2.0))
    sample.logprobs[:, 1] = [-1e6, -np.inf, -65536 / 16, -65535 / 16]
    sample.next_logprob[:3] = [-np.inf, -1e30, -(2**13)]
    sample.log_partition[:2] = [[np.inf, 0, -np.inf], [1e30, 0, -(2**13)]]
    found = codec.decode(codec.encode(sample), 4)
    most = MAX_SCALAR_STEPS / 1024
    assert found.logprobs[:, 1].tolist() == [6 - 65535 / 16] * 4
    assert found.next_logprob[:3].tolist() == [-most] * 3
    assert found.log_partition[:2].tolist() == [[most, 0, -most]] * 2


def _broken(name: str) -> LogitsSample:
    sample = make_sample(0, 4, 300, 3)
    if name == "rising":
        sample.logprobs[2] = sample.logprobs[2, ::-1]
    elif name == "above 0":
        sample.logprobs[1, 0] = 0.5
    elif name == "an id twice":
        sample.ids[1, 2] = sample.ids[1, 0]
    elif name == "next":
        sample.next_logprob[1] = np.nan
    elif name == "next of the last row, which is not the sequence's last":
        sample = replace(sample, num_tokens=5)
    else:
        getattr(sample, name)[1, 1] = np.nan
    return sample


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rising", "descend"),
        ("above 0", "at most 0"),
        ("an id twice", "an id occurs more than once in one row"),
        ("logprobs", "NaN"),
        ("next", "NaN"),
        ("next of the last row, which is not the sequence's last", "NaN"),
        ("log_partition", "NaN"),
    ],
)
def test_invalid_values_are_not_encoded(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_codec(300, 3).encode(_broken(name))


def test_encoding_does_not_modify_the_sample() -> None:
    sample = make_sample(3, 9, 300, 5, ragged=True)
    before = {name: np.copy(value) for name, value in vars(sample).items()}
    make_codec(300, 5).encode(sample)
    for name, value in vars(sample).items():
        np.testing.assert_array_equal(value, before[name])


Change = Callable[[bytes], bytes]
TOKENS, K, VOCABULARY = 4, 3, 300
ZERO = bytes(TOKENS)
LARGE = bytes([0b00_11_11_11] * TOKENS)


def put(part: bytes) -> Change:
    return lambda _: part


WRONG: dict[str, tuple[dict[int, Change], str]] = {
    "a row beyond the sequence": ({POSITIONS: put(bytes([0b10111]))}, "a position: 4, wanted 3"),
    "a row far beyond it": ({POSITIONS: put(bytes([0b111, 1]))}, "bytes of positions: 2, wanted 1"),
    "fewer rows": ({POSITIONS: put(bytes([0b111]))}, "bytes of distances: 8, wanted 6"),
    "no rows": ({POSITIONS: put(b"")}, "bytes of distances: 8, wanted 0"),
    "count of 0": ({COUNTS: put(bytes([1, 0, 1, 1]) + ZERO)}, "one of the counts: 0, wanted 3"),
    "count above K": ({COUNTS: put(bytes([1, 4, 1, 1]) + ZERO)}, "one of the counts: 4"),
    "count above 255": ({COUNTS: put(bytes([1, 1, 1, 1, 0, 1, 0, 0]))}, "one of the counts: 257"),
    "one plane of counts": ({COUNTS: put(bytes([1] * TOKENS))}, "bytes of counts: 4, wanted 8"),
    "fewer entries": ({COUNTS: put(bytes([1, 2, 3, 1]) + ZERO)}, "symbols: 12, wanted 7"),
    "no distances": ({DISTANCES: put(b"")}, "bytes of distances: 0, wanted 8"),
    "a reference before the first row": ({DISTANCES: put(bytes([1]) + bytes(7))}, "distance of a reference row: 1"),
    "no symbols": ({SYMBOLS: put(b"")}, "rows with enough symbols: 0"),
    "more lows": ({LOWS: lambda part: part + b"\0"}, "lows and new ids: "),
    "ids outside the vocabulary": ({NEW: lambda part: b"\xff" * len(part)}, "largest code of an id: 65535, wanted 299"),
    "no differences": ({DIFFERENCES: put(b""), EXCESSES: put(b"")}, "rows with enough differences: 0, wanted 4"),
    "more differences": ({DIFFERENCES: lambda part: part + b"\0"}, "bytes of differences: 5, wanted 4"),
    "too few excesses": ({DIFFERENCES: put(LARGE), EXCESSES: put(bytes(11))}, "bytes of excesses: 11, wanted 12"),
    "no scalars": ({SCALARS: put(b"")}, "bytes of scalars: 0, wanted 24"),
    "more scalars": ({SCALARS: lambda part: part + bytes(3)}, "bytes of scalars: 27, wanted 24"),
    "scalars of one temperature": ({SCALARS: put(bytes(12))}, "bytes of scalars: 12, wanted 24"),
    "more than rows of this shape can have": ({EXCESSES: put(bytes(500))}, "a zstd frame declares"),
    "far more": ({SCALARS: put(bytes(1 << 24))}, "a zstd frame declares"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_inconsistent_payload_is_refused(name: str) -> None:
    codec = make_codec(VOCABULARY, K)
    payload = codec.encode(make_sample(0, TOKENS, VOCABULARY, K))
    codec.decode(with_sections(payload, {}), TOKENS)  # what other writers make of it is accepted
    changes, message = WRONG[name]
    parts = sections(payload)
    changed = {number: change(parts[number]) for number, change in changes.items()}
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        codec.decode(with_sections(payload, changed), TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("ragged", [False, True])
def test_float_logprobs_round_to_their_dtype(dtype: FloatDtype, ragged: bool) -> None:
    sample = make_sample(0, 9, 300, 5, ragged=ragged, stored=0.7)
    codec = make_codec(300, 5, codec=CodecConfig(logprobs=dtype))
    payload = codec.encode(sample)
    found = codec.decode(payload, 9)
    stored = np.arange(5) < sample.counts[:, None]
    rounded = torch.from_numpy(sample.logprobs).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(found.logprobs, np.where(stored, rounded, -np.inf))
    np.testing.assert_array_equal(found.ids, sample.ids)
    rows = rows_of(9, 5, 2)
    codec.decode_into(payload, rows)
    np.testing.assert_array_equal(rows.logprobs[sample.positions], found.logprobs)
    assert (rows.logprobs[np.setdiff1d(np.arange(9), sample.positions)] == -np.inf).all()
    sizes = [len(part) for part in sections(payload)[DIFFERENCES:SCALARS]]
    assert sizes == [stored.sum() * FLOAT_BYTES[dtype], 0, 0, 0]


@pytest.mark.parametrize("logprobs", ["steps", "bfloat16", "float16", "float32"])
def test_rounding_errors_above_0_are_stored_as_0(logprobs: str) -> None:
    sample = make_sample(0, 4, 300, 3)
    sample.logprobs[:, 0] = [0, -0.0, 1e-7, 1e-6]
    codec = make_codec(300, 3, codec=CodecConfig(logprobs=logprobs))
    assert codec.decode(codec.encode(sample), 4).logprobs[:, 0].tolist() == [0] * 4


FLOATS = -np.arange(TOKENS * K, dtype=np.float32)


def planes(floats: np.ndarray) -> bytes:
    return floats.view(np.uint8).reshape(-1, 4).T.tobytes()


WRONG_FLOATS = {
    "above 0": ({DIFFERENCES: planes(FLOATS + 1)}, "log-probabilities above 0 or not a number"),
    "not a number": ({DIFFERENCES: planes(FLOATS * np.float32("nan"))}, "log-probabilities above 0 or not a number"),
    "too few": ({DIFFERENCES: bytes(44)}, "bytes of log-probabilities: 44, wanted 48"),
    "too many": ({DIFFERENCES: bytes(52)}, "bytes of log-probabilities: 52, wanted 48"),
    "halves of floats": ({DIFFERENCES: bytes(24)}, "bytes of log-probabilities: 24, wanted 48"),
    "differences": ({DIFFERENCES + 1: b"\0"}, "bytes of differences beside log-probabilities: 1, wanted 0"),
    "excesses": ({EXCESSES: b"\0"}, "bytes of differences beside log-probabilities: 1, wanted 0"),
    "fewer entries": ({COUNTS: bytes([3, 3, 3, 2]) + ZERO}, "symbols: 12, wanted 11"),
    "more than rows of this shape can have": ({DIFFERENCES: bytes(500)}, "a zstd frame declares"),
}


@pytest.mark.parametrize("name", WRONG_FLOATS)
def test_an_inconsistent_payload_of_floats_is_refused(name: str) -> None:
    codec = make_codec(VOCABULARY, K, codec=CodecConfig(logprobs="float32"))
    payload = codec.encode(make_sample(0, TOKENS, VOCABULARY, K))
    good = with_sections(payload, {DIFFERENCES: planes(FLOATS)})
    assert codec.decode(good, TOKENS).logprobs.tolist() == FLOATS.reshape(TOKENS, K).tolist()
    changed, message = WRONG_FLOATS[name]
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        codec.decode(with_sections(good, changed), TOKENS)


@given(
    seed=st.integers(0, 10**6),
    ragged=st.booleans(),
    vocab_size=st.sampled_from([300, 70_000]),
    logprobs=st.sampled_from(["steps", "steps", "bfloat16", "float32"]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_section_bytes_decode_within_bounds_or_are_refused(
    seed: int, ragged: bool, vocab_size: int, logprobs: str, data: st.DataObject
) -> None:
    """Guard rows around the rows stay as they were."""
    tokens, k, codec = 7, 10, make_codec(vocab_size, 10, codec=CodecConfig(logprobs=logprobs))
    payload = codec.encode(make_sample(seed, tokens, vocab_size, k, ragged=ragged, stored=0.8))
    parts = with_changed_bytes(sections(payload), data)
    guarded = rows_of(tokens + 2, k, 2)
    rows = Rows(*(array[1:-1] for array in guarded))
    with contextlib.suppress(CorruptCacheError):
        codec.decode_into(with_sections(payload, dict(enumerate(parts))), rows)
        assert 0 <= rows.counts.min() <= rows.counts.max() <= k
        assert 0 <= rows.ids.min() <= rows.ids.max() < vocab_size
        stored = np.arange(k) < rows.counts[:, None]
        assert (rows.ids[~stored] == 0).all()
        assert (rows.logprobs[~stored] == -np.inf).all()
        assert (rows.logprobs[stored] <= 0).all()
        assert (rows.next_logprob != 77).all()
        assert (rows.log_partition[:, 0] == 0).all()
    for array in guarded:
        assert (array[0] == 77).all()
        assert (array[-1] == 77).all()


@pytest.mark.parametrize("num_tokens", [0, 1, TOKENS - 1])
def test_a_shorter_sequence_is_refused(num_tokens: int) -> None:
    codec = make_codec(VOCABULARY, K)
    payload = codec.encode(make_sample(0, TOKENS, VOCABULARY, K))
    with pytest.raises(CorruptCacheError):
        codec.decode(payload, num_tokens)


def test_whole_vocabulary_and_masked_logits() -> None:
    capture = LogitsCapture(k=20, positions="all")
    logits = np.random.default_rng(0).normal(0, 1, (5, 20))
    logits[2, 7:] = -np.inf
    sample = logits_sample(logits, np.array([1, 2, 3, 19, 5]), capture)
    assert sample.counts.tolist() == [20, 20, 7, 20, 20]
    assert sample.next_logprob[2] == -np.inf
    codec = LogitsCodec(capture, CodecConfig(), table(20))
    decoded = codec.decode(codec.encode(sample), 5)
    assert np.array_equal(decoded.ids, sample.ids)
    assert decoded.next_logprob[2] < -8000, "a probability of 0"
