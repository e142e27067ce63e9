"""The codec loses what it documents to lose and no more, and refuses payloads that do not decode to a valid sample."""

import contextlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.forge import arrow_stream, columns, sections, with_sections
from support.synthetic import logits_sample
from teacher_cache.codec.logits import LogitsDecoder, LogitsEncoder
from teacher_cache.codec.permutation import build_code_table
from teacher_cache.codec.rows import Rows
from teacher_cache.records import LogitsSample


@lru_cache
def table(vocab_size: int) -> np.ndarray:
    return build_code_table(np.random.default_rng(vocab_size).integers(0, 5, vocab_size))


def make_sample(
    seed: int, tokens: int, vocab_size: int, k: int, temperatures: int = 2, spread: float = 1.0, ragged: bool = False
) -> LogitsSample:
    """Random values within a LogitsSample's conventions; ids run over the whole vocabulary, both ends included."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, k + 1, tokens) if ragged else np.full(tokens, k)
    beyond = np.arange(k) >= counts[:, None]
    ids = rng.integers(0, vocab_size, (tokens, k))
    ids[rng.random((tokens, k)) < 0.1] = vocab_size - 1
    next_logprob = -rng.exponential(3, tokens)
    next_logprob[rng.random(tokens) < 0.1] = -np.inf
    next_logprob[-1] = np.nan
    return LogitsSample(
        counts=counts.astype(np.int32),
        ids=np.where(beyond, 0, ids).astype(np.int32),
        logprobs=np.where(beyond, -np.inf, -np.cumsum(rng.exponential(spread, (tokens, k)), axis=1)).astype(np.float32),
        next_logprob=next_logprob.astype(np.float32),
        log_partition=rng.normal(0, 30, (tokens, temperatures)).astype(np.float32),
    )


def codecs(
    vocab_size: int, k: int, temperatures: int = 2, codec: CodecConfig | None = None
) -> tuple[LogitsEncoder, LogitsDecoder]:
    capture = LogitsCapture(k=k, temperatures=[1.0 + i for i in range(temperatures)])
    codec = codec or CodecConfig()
    return LogitsEncoder(capture, codec, table(vocab_size)), LogitsDecoder(capture, codec, table(vocab_size))


def assert_within_half_a_step(found: np.ndarray, wanted: np.ndarray, steps_per_nat: int, lowest_steps: float) -> None:
    """Equal up to rounding to steps (and to float32), values below the lowest storable one being clipped to it."""
    wanted = np.maximum(wanted.astype(np.float64), -lowest_steps / steps_per_nat)
    allowed = 0.5 / steps_per_nat + 3e-7 * np.abs(wanted)
    assert found.dtype == np.float32
    assert (np.abs(found - wanted) <= allowed).all()


def check_round_trip(sample: LogitsSample, vocab_size: int, k: int, codec: CodecConfig) -> bytes:
    encoder, decoder = codecs(vocab_size, k, sample.log_partition.shape[1], codec)
    payload = encoder.encode(sample)
    found = decoder.decode(payload, len(sample.counts))
    np.testing.assert_array_equal(found.counts, sample.counts)
    np.testing.assert_array_equal(found.ids, sample.ids)
    assert (found.counts.dtype, found.ids.dtype) == (np.int32, np.int32)
    stored = np.arange(k) < sample.counts[:, None]
    assert (found.logprobs[~stored] == -np.inf).all()
    assert_within_half_a_step(found.logprobs[stored], sample.logprobs[stored], codec.logprob_steps_per_nat, 65535)
    assert np.isnan(found.next_logprob[-1])
    steps = codec.scalar_steps_per_nat
    assert_within_half_a_step(found.next_logprob[:-1], sample.next_logprob[:-1], steps, 2**30)
    assert_within_half_a_step(found.log_partition, sample.log_partition, steps, 2**30)
    assert encoder.encode(sample) == payload
    return payload


@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 40),
    vocab_size=st.sampled_from([2, 255, 256, 257, 5000, 65_535, 65_536, 65_537, 200_001]),
    k=st.integers(1, 33),
    temperatures=st.integers(1, 3),
    spread=st.sampled_from([0.0, 0.01, 1.0, 40.0]),
    ragged=st.booleans(),
    logprob_steps=st.sampled_from([1, 16, 100, 4096]),
    scalar_steps=st.sampled_from([16, 1000, 1024, 65536]),
)
@example(0, 1, 65_537, 1, 1, 1.0, False, 16, 1024)
@example(0, 1, 65_536, 1, 1, 1.0, True, 16, 1024)
@settings(max_examples=120, deadline=None)
def test_round_trip(
    seed: int, tokens: int, vocab_size: int, k: int, temperatures: int, spread: float, ragged: bool,
    logprob_steps: int, scalar_steps: int,
) -> None:  # fmt: skip
    codec = CodecConfig(logprob_steps_per_nat=logprob_steps, scalar_steps_per_nat=scalar_steps)
    check_round_trip(make_sample(seed, tokens, vocab_size, k, temperatures, spread, ragged), vocab_size, k, codec)


@pytest.mark.parametrize(("vocab_size", "planes"), [(65_535, 2), (65_536, 2), (65_537, 3)])
def test_ids_take_a_third_plane_above_two_to_the_sixteen(vocab_size: int, planes: int) -> None:
    payload = check_round_trip(make_sample(0, 3, vocab_size, 4), vocab_size, 4, CodecConfig())
    assert len(sections(payload)["ids"]) == planes * 3 * 4


@pytest.mark.parametrize(("gap", "planes"), [(0, 0), (2, 0), (3, 1), (258, 1), (259, 2), (65_535, 2)])
def test_excesses_are_there_above_2_and_take_a_second_plane_above_258(gap: int, planes: int) -> None:
    sample = make_sample(0, 5, 300, 2)
    sample.logprobs[:] = [0, -gap / 16]
    payload = check_round_trip(sample, 300, 2, CodecConfig())
    assert len(sections(payload)["excesses"]) == planes * 5


@pytest.mark.parametrize(("k", "width"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_four_differences_share_a_byte(k: int, width: int) -> None:
    payload = check_round_trip(make_sample(0, 5, 300, k), 300, k, CodecConfig())
    assert len(sections(payload)["logprobs"]) == 5 * width


@pytest.mark.parametrize(("ragged", "planes"), [(False, 0), (True, 2)])
def test_counts_are_left_out_when_all_are_k(ragged: bool, planes: int) -> None:
    payload = check_round_trip(make_sample(0, 20, 300, 5, ragged=ragged), 300, 5, CodecConfig())
    assert len(sections(payload)["counts"]) == planes * 20


def test_an_infinite_or_tiny_probability_is_clipped_not_wrapped() -> None:
    encoder, decoder = codecs(300, 2)
    sample = make_sample(0, 3, 300, 2)
    sample.logprobs[:, 1] = [-1e6, -np.inf, -65536 / 16]
    sample.next_logprob[:2] = [-np.inf, -1e30]
    sample.log_partition[0] = [np.inf, -np.inf]
    found = decoder.decode(encoder.encode(sample), 3)
    assert found.logprobs[:, 1].tolist() == [-65535 / 16] * 3
    assert found.next_logprob[:2].tolist() == [-(2**20)] * 2
    assert found.log_partition[0].tolist() == [2**20, -(2**20)]


def _broken(name: str) -> LogitsSample:
    sample = make_sample(0, 4, 300, 3)
    arrays = {"logprobs": sample.logprobs.copy(), "next_logprob": sample.next_logprob.copy()}
    arrays["log_partition"] = sample.log_partition.copy()
    if name == "rising":
        arrays["logprobs"][2] = arrays["logprobs"][2, ::-1]
    elif name == "above 0":
        arrays["logprobs"][1, 0] = 0.5
    elif name == "next":
        arrays["next_logprob"][1] = np.nan
    else:
        arrays[name][1, 1] = np.nan
    return replace(sample, **arrays)


@pytest.mark.parametrize("name", ["rising", "above 0", "logprobs", "next", "log_partition"])
def test_values_that_cannot_be_are_not_encoded(name: str) -> None:
    with pytest.raises(ValueError, match=r"NaN|fall"):
        codecs(300, 3)[0].encode(_broken(name))


def test_encoding_leaves_the_sample_alone() -> None:
    sample = make_sample(3, 9, 300, 5, ragged=True)
    before = {name: array.copy() for name, array in vars(sample).items()}
    codecs(300, 5)[0].encode(sample)
    for name, array in vars(sample).items():
        np.testing.assert_array_equal(array, before[name])


TOKENS, K, VOCABULARY = 4, 3, 300
FULL = bytes([1] * TOKENS * K)
ZERO = bytes(TOKENS)
WRONG = {
    "code outside the vocabulary": ({"ids": bytes([44]) * TOKENS * K + FULL}, "code of the ids: 300"),
    "count of 0": ({"counts": bytes([1, 0, 1, 1]) + ZERO}, "counts: 0"),
    "count above K": ({"counts": bytes([1, 4, 1, 1]) + ZERO}, "counts: 4"),
    "count above 255": ({"counts": bytes([1, 1, 1, 1, 0, 1, 0, 0])}, "counts: 257"),
    "counts that the ids do not match": ({"counts": bytes([1, 2, 3, 1]) + ZERO}, "bytes of ids: 24, wanted 14"),
    "one plane of counts": ({"counts": bytes([1] * TOKENS)}, "bytes of counts: 4"),
    "ids of another length": ({"ids": FULL + FULL[:-2]}, "bytes of ids: 22"),
    "one plane of ids": ({"ids": FULL}, "bytes of ids: 12"),
    "three planes of ids": ({"ids": FULL * 3}, "bytes of ids: 36"),
    "no ids": ({"ids": b""}, "bytes of ids: 0"),
    "no log-probabilities": ({"logprobs": b""}, "bytes of logprobs: 0"),
    "one packed byte too many": ({"logprobs": bytes(TOKENS + 1)}, "bytes of logprobs: 5, wanted 4"),
    "too few excesses": ({"logprobs": bytes([63] * TOKENS), "excesses": FULL[1:]}, "bytes of excesses: 11, wanted 12"),
    "too many excesses": ({"logprobs": bytes([63] * TOKENS), "excesses": bytes(13)}, "bytes of excesses: 13"),
    "three planes of excesses": ({"logprobs": bytes([1] * TOKENS), "excesses": FULL}, "bytes of excesses"),
    "scalars of one temperature": ({"scalars": bytes(TOKENS * 2 * 4)}, "bytes of scalars: 32, wanted 48"),
    "more than rows of this shape can have": ({"excesses": bytes(500)}, "together at most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_payload_that_contradicts_itself_is_refused(name: str) -> None:
    encoder, decoder = codecs(VOCABULARY, K)
    payload = encoder.encode(make_sample(0, TOKENS, VOCABULARY, K))
    decoder.decode(with_sections(payload), TOKENS)  # what pyarrow writes anew is accepted
    changed, message = WRONG[name]
    with pytest.raises(CorruptCacheError, match=message):
        decoder.decode(with_sections(payload, **changed), TOKENS)


@pytest.mark.parametrize("sizes", [[], [0, 24, 4], [0, 24, 4, 0, 48, 0], [-1, 25, 4, 0, 48], [1, 2**31 - 1, 0, 0, 0]])
def test_sizes_that_cannot_be_are_refused(sizes: list[int]) -> None:
    encoder, decoder = codecs(VOCABULARY, K)
    row = columns(encoder.encode(make_sample(0, TOKENS, VOCABULARY, K)))
    with pytest.raises(CorruptCacheError, match="sizes"):
        decoder.decode(arrow_stream(LOGITS_SCHEMA, [row | {"sizes": sizes}]), TOKENS)


@given(seed=st.integers(0, 10**6), ragged=st.booleans(), vocab_size=st.sampled_from([300, 70_000]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_the_sections_are_decoded_within_bounds_or_refused(
    seed: int, ragged: bool, vocab_size: int, data: st.DataObject
) -> None:
    """Guard bytes around the rows stay as they were."""
    encoder, decoder = codecs(vocab_size, K)
    parts = sections(encoder.encode(make_sample(seed, TOKENS, vocab_size, K, ragged=ragged)))
    name = data.draw(st.sampled_from([name for name, part in parts.items() if part]))
    changed = bytearray(parts[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    payload = with_sections(encoder.encode(make_sample(seed, TOKENS, vocab_size, K, ragged=ragged)), **{name: changed})
    shapes = {"counts": (), "ids": (K,), "logprobs": (K,), "next_logprob": (), "log_partition": (2,)}
    kinds = {"counts": np.int32, "ids": np.int32}
    guarded = {n: np.full((TOKENS + 2, *shape), 77, kinds.get(n, np.float32)) for n, shape in shapes.items()}
    rows = Rows(**{n: array[1:-1] for n, array in guarded.items()})
    with contextlib.suppress(CorruptCacheError):
        decoder.decode_into(payload, rows)
        assert 0 <= rows.ids.min() <= rows.ids.max() < vocab_size
    for array in guarded.values():
        assert (array[0] == 77).all()
        assert (array[-1] == 77).all()


@pytest.mark.parametrize("num_tokens", [1, TOKENS - 1, TOKENS + 1, 10**6])
def test_another_number_of_tokens_is_refused(num_tokens: int) -> None:
    encoder, decoder = codecs(VOCABULARY, K)
    payload = encoder.encode(make_sample(0, TOKENS, VOCABULARY, K))
    with pytest.raises(CorruptCacheError):
        decoder.decode(payload, num_tokens)


def test_frequent_ids_compress_better_with_their_code_table() -> None:
    """The reason to have the table at all."""
    rng = np.random.default_rng(0)
    names = rng.permutation(50_000)
    sample = make_sample(0, 500, 50_000, 16)
    sample = replace(sample, ids=names[np.minimum(rng.zipf(1.3, (500, 16)), 50_000) - 1].astype(np.int32))
    capture, codec = LogitsCapture(k=16, temperatures=[1.0, 2.0]), CodecConfig()
    counts = np.bincount(sample.ids.reshape(-1), minlength=50_000)
    good = LogitsEncoder(capture, codec, build_code_table(counts)).encode(sample)
    plain = LogitsEncoder(capture, codec, np.arange(50_000, dtype=np.uint32)).encode(sample)
    assert len(good) < 0.9 * len(plain)


def test_whole_vocabulary_and_masked_logits() -> None:
    capture = LogitsCapture(k=20)
    logits = np.random.default_rng(0).normal(0, 1, (5, 20))
    logits[2, 7:] = -np.inf
    sample = logits_sample(logits, np.array([1, 2, 3, 19, 5]), capture)
    assert sample.counts.tolist() == [20, 20, 7, 20, 20]
    assert sample.next_logprob[2] == -np.inf
    payload = LogitsEncoder(capture, CodecConfig(), table(20)).encode(sample)
    decoded = LogitsDecoder(capture, CodecConfig(), table(20)).decode(payload, 5)
    assert np.array_equal(decoded.ids, sample.ids)
    assert decoded.next_logprob[2] < -1e5, "a probability of 0"
