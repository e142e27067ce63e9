"""The ``logits`` signal as bytes: S rows of at most K entries and 1 + T scalars.

- ``ids``: each id's code (see ``permutation``) as u16, or u24 for vocabularies above 65,536; row by row.
- ``logprobs``: -log p in steps of 1/``logprob_steps_per_nat``, rounded (so off by half a step at most), as differences
  along the falling row, column by column: neighbours in a column are alike. u8, or u16 where a difference needs it.
- ``scalars``: realised token's log-probability, then one log-partition a temperature, in steps of
  1/``scalar_steps_per_nat``, i32. The last row has no realised token: 0 on disk, NaN when read.
- ``counts``: entries of each row, u16; left out when every row has K. Entries beyond a row's count are not stored.

All are split into byte planes and compressed plane by plane (see ``planes``).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import Row, RowReader, write_row
from teacher_cache.codec.permutation import TWO_PLANES, invert_code_table
from teacher_cache.codec.planes import compress_planes, decompress_planes, join_planes, split_planes
from teacher_cache.records import LogitsSample

MAX_STEPS = 65535  # a log-probability is stored as a u16 number of steps; lower ones are clipped
MAX_SCALAR_STEPS = 1 << 30  # scalars beyond ±2^30 steps, infinite ones too, are clipped to that
ROW_PADDING = 32  # rows of a power of two bytes would fall into the same few cache lines when they are transposed


_READER = RowReader(LOGITS_SCHEMA)


class LogitsEncoder:
    """Encodes sequences with one code table."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        self._k = capture.k
        self._codec = codec
        self._id_planes = 2 if len(table) <= TWO_PLANES else 3
        self._code_of_id = invert_code_table(table).astype(np.uint16 if self._id_planes == 2 else np.uint32)
        self._compressor = zstandard.ZstdCompressor(level=codec.zstd_level, write_checksum=False)

    def encode(self, sample: LogitsSample) -> bytes:
        """The payload of one sequence's logits member.

        Raises ValueError unless log-probabilities are at most 0 and fall along each row, and nothing but the last row's
        realised log-probability is NaN.
        """
        uniform = bool((sample.counts == self._k).all())
        stored_SK = None if uniform else np.arange(self._k) < sample.counts[:, None]
        ids_N = sample.ids.reshape(-1) if stored_SK is None else sample.ids[stored_SK]
        differences_N = self._differences(sample.logprobs, stored_SK)
        planes = {
            "counts": split_planes(sample.counts, 0 if uniform else 2),
            "ids": split_planes(self._code_of_id[ids_N], self._id_planes),
            "logprobs": split_planes(differences_N, 1 if differences_N.max() < 256 else 2),
            "scalars": split_planes(self._scalars(sample), 4),
        }
        return write_row(
            LOGITS_SCHEMA, {name: compress_planes(rows, self._compressor) for name, rows in planes.items()}
        )

    def _differences(self, logprobs_SK: np.ndarray, stored_SK: np.ndarray | None) -> np.ndarray:
        """The stored entries' differences, uint16 [N], column by column."""
        costs_SK = -logprobs_SK if stored_SK is None else np.where(stored_SK, -logprobs_SK, 0)
        steps_SK = _quantise(costs_SK, self._codec.logprob_steps_per_nat, MAX_STEPS)
        falling_SK = steps_SK[:, 1:] >= steps_SK[:, :-1]
        if stored_SK is not None:
            falling_SK |= ~stored_SK[:, 1:]
        if steps_SK.min() < 0 or not falling_SK.all():
            raise ValueError("log-probabilities must fall along each row and not exceed 0")
        steps_KS = steps_SK.T.astype(np.uint16, order="C")
        steps_KS[1:] -= steps_KS[:-1].copy()
        return steps_KS.reshape(-1) if stored_SK is None else steps_KS[stored_SK.T]

    def _scalars(self, sample: LogitsSample) -> np.ndarray:
        """The realised log-probability and the log-partitions in steps, int32 [1 + T, S]."""
        scalars_CS = np.concatenate([sample.next_logprob[None], sample.log_partition.T])
        scalars_CS[0, -1] = 0
        return _quantise(scalars_CS, self._codec.scalar_steps_per_nat, MAX_SCALAR_STEPS)


def _quantise(values: np.ndarray, steps_per_nat: int, limit: int) -> np.ndarray:
    """``values`` (nats; may be infinite) as int32 numbers of steps, clipped to ±``limit``. Raises ValueError on NaN."""
    steps = np.multiply(values, steps_per_nat, dtype=np.float64)
    if np.isnan(steps).any():
        raise ValueError("NaN among the values to be stored")
    np.rint(steps, out=steps)
    return np.clip(steps, -limit, limit, out=steps).astype(np.int32)


@dataclass(frozen=True)
class LogitsTarget:
    """Where one sequence is decoded to: views into batch arrays. All of their entries are written."""

    ids: np.ndarray  # int32 [S, K]
    logprobs: np.ndarray  # float32 [S, K]
    next_logprob: np.ndarray  # float32 [S]
    log_partition: np.ndarray  # float32 [S, T]


class LogitsDecoder:
    """Decodes payloads of shards that were written with one code table. Threads may share it.

    A few sequences are decoded at once: fewer calls, and array passes long enough for another thread to use Python's
    lock meanwhile; too many, and the arrays between the passes would not stay in the processor's cache.
    """

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        self._k = capture.k
        self._n_scalars = 1 + len(capture.temperatures)
        self._nats_per_step = np.float32(1 / codec.logprob_steps_per_nat)
        self._nats_per_scalar_step = np.float32(1 / codec.scalar_steps_per_nat)
        self._table = pa.array(table.astype(np.int32))
        self._id_planes = 2 if len(table) <= TWO_PLANES else 3

    def decode(self, payload: bytes, num_tokens: int) -> LogitsSample:
        """Decode one sequence into arrays of its own. Raises CorruptCacheError."""
        target = LogitsTarget(
            ids=np.empty((num_tokens, self._k), np.int32),
            logprobs=np.empty((num_tokens, self._k), np.float32),
            next_logprob=np.empty(num_tokens, np.float32),
            log_partition=np.empty((num_tokens, self._n_scalars - 1), np.float32),
        )
        (counts,) = self.decode_into([payload], [target])
        return LogitsSample(counts, target.ids, target.logprobs, target.next_logprob, target.log_partition)

    def decode_into(self, payloads: Sequence[bytes], targets: Sequence[LogitsTarget]) -> list[np.ndarray]:
        """Decode sequences into ``targets``; returns their counts, int32 [S] each. Raises CorruptCacheError.

        No plane is decompressed before its size is known to be what the target's shape and K imply.
        """
        lengths = [len(target.ids) for target in targets]
        rows = [_READER.read(payload) for payload in payloads]
        counts = self._counts(rows, lengths)
        entries = [int(row_counts.sum()) for row_counts in counts]
        whole = sum(entries) == self._k * sum(lengths)
        stored_NK = None if whole else np.arange(self._k) < np.concatenate(counts)[:, None]
        self._decode_ids(_decompress(rows, "ids", (self._id_planes,), entries), stored_NK, targets)
        self._decode_logprobs(_decompress(rows, "logprobs", (1, 2), entries), stored_NK, targets)
        scalars = _decompress(rows, "scalars", (4,), [self._n_scalars * length for length in lengths])
        for target, planes in zip(targets, scalars, strict=True):
            scalars_CS = join_planes(planes).view(np.int32).reshape(self._n_scalars, -1)
            np.multiply(scalars_CS[0], self._nats_per_scalar_step, out=target.next_logprob)
            target.next_logprob[-1] = np.nan
            np.multiply(scalars_CS[1:].T, self._nats_per_scalar_step, out=target.log_partition)
        return counts

    def _counts(self, rows: Sequence[Row], lengths: Sequence[int]) -> list[np.ndarray]:
        planes = _decompress(rows, "counts", (0, 2), lengths)
        counts = [
            join_planes(pair).astype(np.int32) if pair else np.full(length, self._k, np.int32)
            for pair, length in zip(planes, lengths, strict=True)
        ]
        for row_counts in counts:
            if row_counts.min() < 1 or row_counts.max() > self._k:
                raise CorruptCacheError(f"counts lie in {row_counts.min()}..{row_counts.max()}, wanted 1..{self._k}")
        return counts

    def _decode_ids(
        self, planes: list[list[np.ndarray]], stored_NK: np.ndarray | None, targets: Sequence[LogitsTarget]
    ) -> None:
        codes_E = join_planes([np.concatenate(plane) for plane in zip(*planes, strict=True)])
        if codes_E.max() >= len(self._table):
            raise CorruptCacheError(f"code {codes_E.max()} is outside the vocabulary of {len(self._table)}")
        ids = pc.take(self._table, pa.array(codes_E), boundscheck=False).to_numpy()  # twice as fast as numpy's
        if stored_NK is not None:
            every = np.zeros(stored_NK.shape, np.int32)
            every[stored_NK] = ids
            ids = every
        _distribute(ids.reshape(-1, self._k), [target.ids for target in targets])

    def _decode_logprobs(
        self, planes: list[list[np.ndarray]], stored_NK: np.ndarray | None, targets: Sequence[LogitsTarget]
    ) -> None:
        total = sum(len(target.ids) for target in targets)
        steps_KP = np.zeros((self._k, total + ROW_PADDING), np.uint16)
        start = 0
        for sequence, target in zip(planes, targets, strict=True):
            stop = start + len(target.ids)
            steps_KS = steps_KP[:, start:stop]
            differences = join_planes(sequence)
            if stored_NK is None:
                steps_KS[...] = differences.reshape(steps_KS.shape)
            else:
                steps_KS[stored_NK[start:stop].T] = differences
            start = stop
        steps_KP = _prefix_sum_rows(steps_KP)
        logprobs_NK = np.multiply(steps_KP[:, :total].T, -self._nats_per_step, order="C")
        if stored_NK is not None:
            logprobs_NK[~stored_NK] = -np.inf
        _distribute(logprobs_NK, [target.logprobs for target in targets])


def _decompress(
    rows: Sequence[Row], column: str, allowed: tuple[int, ...], sizes: Sequence[int]
) -> list[list[np.ndarray]]:
    """Each row's planes of ``column``: as many as ``allowed``, each of the row's size."""
    frames = [row.frames(column) for row in rows]
    for planes in frames:
        if len(planes) not in allowed:
            raise CorruptCacheError(f"column {column} has {len(planes)} planes, wanted one of {allowed}")
    wanted = [size for planes, size in zip(frames, sizes, strict=True) for _ in planes]
    try:
        plain = iter(decompress_planes(list(itertools.chain.from_iterable(frames)), wanted))
    except CorruptCacheError as error:
        raise CorruptCacheError(f"column {column}: {error}") from None
    return [list(itertools.islice(plain, len(planes))) for planes in frames]


def _distribute(joined: np.ndarray, targets: Sequence[np.ndarray]) -> None:
    start = 0
    for target in targets:
        target[...] = joined[start : start + len(target)]
        start += len(target)


def _prefix_sum_rows(values_KP: np.ndarray) -> np.ndarray:
    """Row j becomes the sum of rows 0..j, modulo 2^16; ``values_KP`` is overwritten.

    log2(K) whole-array passes between two buffers: several times faster than ``np.cumsum`` along this axis.
    """
    spare_KP = np.empty_like(values_KP)
    shift = 1
    while shift < len(values_KP):
        np.add(values_KP[shift:], values_KP[:-shift], out=spare_KP[shift:])
        spare_KP[:shift] = values_KP[:shift]
        values_KP, spare_KP = spare_KP, values_KP
        shift *= 2
    return values_KP
