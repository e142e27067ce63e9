"""The logits codec against what it promises: ids exact, values within half a step, nothing hostile accepted."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from support.synthetic import logits_sample
from teacher_cache.codec.logits import LogitsDecoder, LogitsEncoder, LogitsTarget
from teacher_cache.codec.message import write_row
from teacher_cache.codec.permutation import build_code_table
from teacher_cache.records import LogitsSample


def identity_table(vocab_size: int) -> np.ndarray:
    return build_code_table(np.arange(vocab_size)[::-1])


def random_sample(rng: np.random.Generator, num_tokens: int, vocab_size: int, capture: LogitsCapture) -> LogitsSample:
    logits_SV = rng.normal(0, 4, (num_tokens, vocab_size))
    return logits_sample(logits_SV, rng.integers(0, vocab_size, num_tokens), capture)


def check_round_trip(sample: LogitsSample, vocab_size: int, capture: LogitsCapture, codec: CodecConfig) -> None:
    table = identity_table(vocab_size)
    payload = LogitsEncoder(capture, codec, table).encode(sample)
    decoded = LogitsDecoder(capture, codec, table).decode(payload, len(sample.ids))
    assert np.array_equal(decoded.counts, sample.counts)
    assert np.array_equal(decoded.ids, sample.ids)
    stored = np.isfinite(sample.logprobs)
    assert np.array_equal(np.isfinite(decoded.logprobs), stored)
    half = 0.5 / codec.logprob_steps_per_nat
    assert np.abs(decoded.logprobs[stored] - sample.logprobs[stored]).max() <= half * (1 + 1e-5)
    half = 0.5 / codec.scalar_steps_per_nat
    assert np.abs(decoded.next_logprob[:-1] - sample.next_logprob[:-1]).max(initial=0) <= half + 1e-5
    assert np.abs(decoded.log_partition - sample.log_partition).max() <= half + 1e-5
    assert np.isnan(decoded.next_logprob[-1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.integers(1, 40),
    k=st.integers(1, 24),
    policy=st.sampled_from(["top_k", "nucleus"]),
    mass=st.floats(0.05, 1.0),
    temperatures=st.sampled_from([[1.0], [1.0, 3.0], [0.5, 1.0, 2.0]]),
    steps=st.sampled_from([1, 16, 100]),
    scalar_steps=st.sampled_from([16, 1024]),
)
def test_round_trip(seed, num_tokens, k, policy, mass, temperatures, steps, scalar_steps):
    capture = LogitsCapture(policy=policy, k=k, mass=mass, temperatures=temperatures)
    codec = CodecConfig(logprob_steps_per_nat=steps, scalar_steps_per_nat=scalar_steps)
    check_round_trip(random_sample(np.random.default_rng(seed), num_tokens, 60, capture), 60, capture, codec)


@pytest.mark.parametrize("vocab_size", [255, 256, 257, 65_535, 65_536, 65_537, 150_000])
def test_every_number_of_byte_planes(vocab_size):
    capture = LogitsCapture(k=16)
    sample = random_sample(np.random.default_rng(0), 3, vocab_size, capture)
    ends = sample.ids.copy()
    ends[0, :2] = [0, vocab_size - 1]
    ends[0, 2:] = np.arange(2, 16)
    check_round_trip(replace(sample, ids=ends), vocab_size, capture, CodecConfig())


def test_differences_that_need_two_bytes():
    capture = LogitsCapture(k=3)
    logprobs = np.array([[-0.001, -100, -2000], [-0.5, -1, -3000]], np.float32)
    sample = replace(random_sample(np.random.default_rng(0), 2, 50, capture), logprobs=logprobs)
    check_round_trip(sample, 50, capture, CodecConfig())


def test_whole_vocabulary_and_masked_logits():
    capture = LogitsCapture(k=20)
    logits = np.random.default_rng(0).normal(0, 1, (5, 20))
    logits[2, 7:] = -np.inf
    sample = logits_sample(logits, np.array([1, 2, 3, 19, 5]), capture)
    assert sample.counts.tolist() == [20, 20, 7, 20, 20]
    assert sample.next_logprob[2] == -np.inf
    table = identity_table(20)
    payload = LogitsEncoder(capture, CodecConfig(), table).encode(sample)
    decoded = LogitsDecoder(capture, CodecConfig(), table).decode(payload, 5)
    assert np.array_equal(decoded.ids, sample.ids)
    assert decoded.next_logprob[2] < -1e5, "a probability of 0"


def test_sequences_decoded_together_equal_those_decoded_alone():
    capture = LogitsCapture(policy="nucleus", k=9, mass=0.8)
    rng, table = np.random.default_rng(0), identity_table(70)
    samples = [random_sample(rng, n, 70, capture) for n in (5, 1, 17)]
    samples[1] = replace(samples[1], logprobs=samples[1].logprobs)
    encoder, decoder = LogitsEncoder(capture, CodecConfig(), table), LogitsDecoder(capture, CodecConfig(), table)
    payloads = [encoder.encode(sample) for sample in samples]
    targets = [
        LogitsTarget(
            np.full((n, 9), 77, np.int32),
            np.full((n, 9), 7, np.float32),
            np.empty(n, np.float32),
            np.empty((n, 2), np.float32),
        )
        for n in (5, 1, 17)
    ]
    counts = decoder.decode_into(payloads, targets)
    for payload, target, together in zip(payloads, targets, counts, strict=True):
        alone = decoder.decode(payload, len(target.ids))
        assert np.array_equal(together, alone.counts)
        assert np.array_equal(target.ids, alone.ids)
        assert np.array_equal(target.logprobs, alone.logprobs)
        assert np.array_equal(target.log_partition, alone.log_partition)
        assert np.array_equal(target.next_logprob, alone.next_logprob, equal_nan=True)


@pytest.mark.parametrize("wrong", ["rising", "above 0", "nan"])
def test_what_is_no_distribution_is_not_encoded(wrong):
    capture = LogitsCapture(k=4)
    sample = random_sample(np.random.default_rng(0), 3, 30, capture)
    logprobs = sample.logprobs.copy()
    logprobs[1] = {"rising": [-4, -3, -2, -1], "above 0": [2, 1, -1, -2], "nan": [-1, np.nan, -2, -3]}[wrong]
    with pytest.raises(ValueError, match=r"fall along each row|NaN"):
        LogitsEncoder(capture, CodecConfig(), identity_table(30)).encode(replace(sample, logprobs=logprobs))


class Tampered:
    """A payload of 4 tokens, K = 3, V = 30, whose columns can be replaced one by one."""

    capture = LogitsCapture(k=3)

    def __init__(self) -> None:
        self.table = identity_table(30)
        sample = random_sample(np.random.default_rng(0), 4, 30, self.capture)
        payload = LogitsEncoder(self.capture, CodecConfig(), self.table).encode(sample)
        self.row = pa.ipc.open_stream(payload).read_next_batch().to_pylist()[0]

    def decode(self, **columns: list[bytes]) -> LogitsSample:
        payload = write_row(LOGITS_SCHEMA, self.row | columns)
        return LogitsDecoder(self.capture, CodecConfig(), self.table).decode(payload, 4)


def frame(values: list[int], dtype: str = "u1") -> bytes:
    return zstandard.compress(np.array(values, dtype).tobytes())


HUGE = b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + b"\x01\x00\x00"  # a frame that claims 1 TiB
UNKNOWN = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(12))
SIZES = [
    ("short", frame([0] * 11)),
    ("long", frame([0] * 13)),
    ("huge", HUGE),
    ("unknown", UNKNOWN),
    ("noise", b"x" * 9),
]


@pytest.mark.parametrize("bad", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("column", ["ids", "logprobs", "scalars"])
def test_frames_of_a_wrong_size_are_refused(column, bad):
    tampered = Tampered()
    good = tampered.row[column]
    with pytest.raises(CorruptCacheError, match=f"column {column}: .*zstd frame"):
        tampered.decode(**{column: [bad, *good[1:]]})


def test_untampered_columns_decode():
    assert Tampered().decode().ids.shape == (4, 3)


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"ids": [frame([29, 30] + [0] * 10), frame([0] * 12)]}, "code 30 is outside"),
        ({"ids": [frame([0] * 12)]}, "has 1 planes"),
        ({"scalars": []}, "has 0 planes"),
        ({"counts": [frame([0, 3, 3, 3]), frame([0] * 4)]}, r"counts lie in 0\.\.3"),
        ({"counts": [frame([4, 3, 3, 3]), frame([0] * 4)]}, r"counts lie in 3\.\.4"),
        ({"counts": [frame([3, 3, 3, 2]), frame([0] * 4)]}, "11 are expected"),
        ({"counts": [frame([3] * 5), frame([0] * 5)]}, "4 are expected"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(columns, wanted):
    with pytest.raises(CorruptCacheError, match=wanted):
        Tampered().decode(**columns)
