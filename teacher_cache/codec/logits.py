"""The ``logits`` signal as bytes: S rows of at most K entries and 1 + T scalars.

- ``ids``: each id's code (see ``permutation``) as u16, or u24 for vocabularies above 65,536; row by row.
- ``logprobs``: -log p in steps of 1/``logprob_steps_per_nat``, rounded (so off by half a step at most), as differences
  along the falling row, column by column: neighbours in a column are alike. u8, or u16 where a difference needs it.
- ``scalars``: realised token's log-probability, then one log-partition a temperature, in steps of
  1/``scalar_steps_per_nat``, i32. The last row has no realised token: 0 on disk, NaN when read.
- ``counts``: entries of each row, u16; left out when every row has K. Entries beyond a row's count are not stored.

All are split into byte planes and compressed plane by plane (see ``planes``).
"""

import threading
from dataclasses import dataclass

import numpy as np
import zstandard

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import Row, RowReader, write_row
from teacher_cache.codec.permutation import TWO_PLANES, invert_code_table
from teacher_cache.codec.planes import compress_planes, decompress_plane, join_planes, split_planes
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
    if np.isnan(steps.sum()) and np.isnan(steps).any():  # the sum is the cheaper test; opposite infinities give NaN too
        raise ValueError("NaN among the values to be stored")
    np.rint(steps, out=steps)
    return np.clip(steps, -limit, limit, out=steps).astype(np.int32)


@dataclass(frozen=True)
class LogitsTarget:
    """Where one sequence is decoded to: views into batch arrays. All of their entries are written."""

    ids: np.ndarray  # int32 [S, K], C-contiguous
    logprobs: np.ndarray  # float32 [S, K]
    next_logprob: np.ndarray  # float32 [S]
    log_partition: np.ndarray  # float32 [S, T]


class LogitsDecoder:
    """Decodes payloads of shards that were written with one code table. Threads may share it."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        self._k = capture.k
        self._n_scalars = 1 + len(capture.temperatures)
        self._nats_per_step = np.float32(1 / codec.logprob_steps_per_nat)
        self._nats_per_scalar_step = np.float32(1 / codec.scalar_steps_per_nat)
        self._table = table.astype(np.int32)
        self._id_planes = 2 if len(table) <= TWO_PLANES else 3
        self._per_thread = threading.local()

    def decode(self, payload: bytes, num_tokens: int) -> LogitsSample:
        """Decode one sequence into arrays of its own. Raises CorruptCacheError."""
        target = LogitsTarget(
            ids=np.empty((num_tokens, self._k), np.int32),
            logprobs=np.empty((num_tokens, self._k), np.float32),
            next_logprob=np.empty(num_tokens, np.float32),
            log_partition=np.empty((num_tokens, self._n_scalars - 1), np.float32),
        )
        counts = self.decode_into(payload, num_tokens, target)
        return LogitsSample(counts, target.ids, target.logprobs, target.next_logprob, target.log_partition)

    def decode_into(self, payload: bytes, num_tokens: int, target: LogitsTarget) -> np.ndarray:
        """Decode one sequence into ``target``; returns the counts, int32 [S]. Raises CorruptCacheError.

        No plane is decompressed before its size is known to be what ``num_tokens`` and K imply.
        """
        row = _READER.read(payload)
        counts = self._counts(row, num_tokens)
        stored_SK = None if counts is None else np.arange(self._k) < counts[:, None]
        entries = num_tokens * self._k if counts is None else int(counts.sum())
        self._decode_ids(row, entries, stored_SK, target.ids)
        self._decode_logprobs(row, entries, stored_SK, target.logprobs)
        scalars_CS = self._scalars(row, num_tokens)
        np.multiply(scalars_CS[0], self._nats_per_scalar_step, out=target.next_logprob)
        target.next_logprob[-1] = np.nan
        np.multiply(scalars_CS[1:].T, self._nats_per_scalar_step, out=target.log_partition)
        return np.full(num_tokens, self._k, np.int32) if counts is None else counts

    def _frames(self, row: Row, column: str, size: int, allowed: tuple[int, ...]) -> list[np.ndarray]:
        frames = row.frames(column)
        if len(frames) not in allowed:
            raise CorruptCacheError(f"column {column} has {len(frames)} planes, wanted one of {allowed}")
        if not hasattr(self._per_thread, "decompressor"):
            self._per_thread.decompressor = zstandard.ZstdDecompressor()
        try:
            return [decompress_plane(frame, size, self._per_thread.decompressor) for frame in frames]
        except CorruptCacheError as error:
            raise CorruptCacheError(f"column {column}: {error}") from None

    def _counts(self, row: Row, num_tokens: int) -> np.ndarray | None:
        planes = self._frames(row, "counts", num_tokens, (0, 2))
        if not planes:
            return None
        counts = join_planes(planes).astype(np.int32)
        if counts.min() < 1 or counts.max() > self._k:
            raise CorruptCacheError(f"counts lie in {counts.min()}..{counts.max()}, wanted 1..{self._k}")
        return counts

    def _decode_ids(self, row: Row, entries: int, stored_SK: np.ndarray | None, out: np.ndarray) -> None:
        planes = self._frames(row, "ids", entries, (self._id_planes,))
        codes_N = join_planes(planes)
        if codes_N.max() >= len(self._table):
            raise CorruptCacheError(f"code {codes_N.max()} is outside the vocabulary of {len(self._table)}")
        if stored_SK is None:
            np.take(self._table, codes_N, out=out.reshape(-1), mode="clip")  # "raise" would copy through a buffer
        else:
            out[...] = 0
            out[stored_SK] = self._table[codes_N]

    def _decode_logprobs(self, row: Row, entries: int, stored_SK: np.ndarray | None, out: np.ndarray) -> None:
        differences_N = join_planes(self._frames(row, "logprobs", entries, (1, 2)))
        num_tokens = len(out)
        steps_KP = np.zeros((self._k, num_tokens + ROW_PADDING), np.uint16)
        if stored_SK is None:
            steps_KP[:, :num_tokens] = differences_N.reshape(self._k, num_tokens)
        else:
            steps_KP[:, :num_tokens][stored_SK.T] = differences_N
        steps_KP = _prefix_sum_rows(steps_KP)
        np.multiply(steps_KP[:, :num_tokens].T, -self._nats_per_step, out=out)
        if stored_SK is not None:
            out[~stored_SK] = -np.inf

    def _scalars(self, row: Row, num_tokens: int) -> np.ndarray:
        planes = self._frames(row, "scalars", self._n_scalars * num_tokens, (4,))
        return join_planes(planes).view(np.int32).reshape(self._n_scalars, num_tokens)


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
