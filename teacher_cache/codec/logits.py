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
import pyarrow as pa
import zstandard

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import read_row, write_row
from teacher_cache.codec.permutation import TWO_PLANES, invert_code_table
from teacher_cache.codec.planes import compress_planes, decompress_plane, join_planes, split_planes
from teacher_cache.records import LogitsSample

MAX_STEPS = 65535  # a log-probability is stored as a u16 number of steps; lower ones are clipped
MAX_SCALAR_STEPS = 1 << 30


class LogitsEncoder:
    """Encodes sequences with one code table."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        self._k = capture.k
        self._codec = codec
        self._code_of_id = invert_code_table(table)
        self._id_planes = 2 if len(table) <= TWO_PLANES else 3
        self._compressor = zstandard.ZstdCompressor(level=codec.zstd_level, write_checksum=False)

    def encode(self, sample: LogitsSample) -> bytes:
        """The payload of one sequence's logits member."""
        stored_SK = np.arange(self._k) < sample.counts[:, None]
        uniform = bool(stored_SK.all())
        codes_N = self._code_of_id[sample.ids[stored_SK]]
        steps_SK = _quantise(np.where(stored_SK, -sample.logprobs, 0), self._codec.logprob_steps_per_nat, MAX_STEPS)
        differences_SK = np.diff(steps_SK, axis=1, prepend=0)
        differences_N = differences_SK.T[stored_SK.T]
        if differences_N.min() < 0:
            raise ValueError("log-probabilities must fall along each row and not exceed 0")
        scalars_CS = np.concatenate([sample.next_logprob[None], sample.log_partition.T])
        scalars_CS = _quantise(np.nan_to_num(scalars_CS, nan=0.0), self._codec.scalar_steps_per_nat, MAX_SCALAR_STEPS)
        planes = {
            "counts": split_planes(sample.counts, 0 if uniform else 2),
            "ids": split_planes(codes_N, self._id_planes),
            "logprobs": split_planes(differences_N, 1 if differences_N.max() < 256 else 2),
            "scalars": split_planes(scalars_CS, 4),
        }
        return write_row(
            LOGITS_SCHEMA, {name: compress_planes(rows, self._compressor) for name, rows in planes.items()}
        )


def _quantise(values: np.ndarray, steps_per_nat: int, limit: int) -> np.ndarray:
    """``values`` (nats; may be infinite) as int64 numbers of steps, clipped to ±``limit``."""
    return np.rint(np.clip(values.astype(np.float64) * steps_per_nat, -limit, limit)).astype(np.int64)


@dataclass(frozen=True)
class LogitsTarget:
    """Where one sequence is decoded to: views into batch arrays that are filled with their padding values."""

    ids: np.ndarray  # int32 [S, K], zeros
    logprobs: np.ndarray  # float32 [S, K], -inf
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
            ids=np.zeros((num_tokens, self._k), np.int32),
            logprobs=np.full((num_tokens, self._k), -np.inf, np.float32),
            next_logprob=np.empty(num_tokens, np.float32),
            log_partition=np.empty((num_tokens, self._n_scalars - 1), np.float32),
        )
        counts = self.decode_into(payload, num_tokens, target)
        return LogitsSample(counts, target.ids, target.logprobs, target.next_logprob, target.log_partition)

    def decode_into(self, payload: bytes, num_tokens: int, target: LogitsTarget) -> np.ndarray:
        """Decode one sequence into ``target``; returns the counts, int32 [S]. Raises CorruptCacheError.

        No plane is decompressed before its size is known to be what ``num_tokens`` and K imply.
        """
        batch = read_row(LOGITS_SCHEMA, payload)
        counts = self._counts(batch, num_tokens)
        stored_SK = None if counts is None else np.arange(self._k) < counts[:, None]
        entries = num_tokens * self._k if counts is None else int(counts.sum())
        self._decode_ids(batch, entries, stored_SK, target.ids)
        self._decode_logprobs(batch, entries, stored_SK, target.logprobs)
        scalars_CS = self._scalars(batch, num_tokens)
        np.multiply(scalars_CS[0], self._nats_per_scalar_step, out=target.next_logprob)
        target.next_logprob[-1] = np.nan
        np.multiply(scalars_CS[1:].T, self._nats_per_scalar_step, out=target.log_partition)
        return np.full(num_tokens, self._k, np.int32) if counts is None else counts

    def _frames(self, batch: pa.RecordBatch, column: str, size: int, allowed: tuple[int, ...]) -> list[np.ndarray]:
        frames = batch.column(column)[0].values
        if len(frames) not in allowed:
            raise CorruptCacheError(f"column {column} has {len(frames)} planes, wanted one of {allowed}")
        if not hasattr(self._per_thread, "decompressor"):
            self._per_thread.decompressor = zstandard.ZstdDecompressor()
        try:
            return [decompress_plane(frame.as_buffer(), size, self._per_thread.decompressor) for frame in frames]
        except CorruptCacheError as error:
            raise CorruptCacheError(f"column {column}: {error}") from None

    def _counts(self, batch: pa.RecordBatch, num_tokens: int) -> np.ndarray | None:
        planes = self._frames(batch, "counts", num_tokens, (0, 2))
        if not planes:
            return None
        counts = join_planes(planes).astype(np.int32)
        if counts.min() < 1 or counts.max() > self._k:
            raise CorruptCacheError(f"counts lie in {counts.min()}..{counts.max()}, wanted 1..{self._k}")
        return counts

    def _decode_ids(self, batch: pa.RecordBatch, entries: int, stored_SK: np.ndarray | None, out: np.ndarray) -> None:
        planes = self._frames(batch, "ids", entries, (self._id_planes,))
        codes_N = join_planes(planes)
        if codes_N.max() >= len(self._table):
            raise CorruptCacheError(f"code {codes_N.max()} is outside the vocabulary of {len(self._table)}")
        if stored_SK is None:
            np.take(self._table, codes_N, out=out.reshape(-1), mode="clip")  # "raise" would copy through a buffer
        else:
            out[stored_SK] = self._table[codes_N]

    def _decode_logprobs(
        self, batch: pa.RecordBatch, entries: int, stored_SK: np.ndarray | None, out: np.ndarray
    ) -> None:
        planes = self._frames(batch, "logprobs", entries, (1, 2))
        differences_N = join_planes(planes)
        if stored_SK is None:
            steps_KS = differences_N.reshape(self._k, -1).astype(np.uint16)
        else:
            steps_KS = np.zeros(stored_SK.T.shape, np.uint16)
            steps_KS[stored_SK.T] = differences_N
        _prefix_sum_rows(steps_KS)
        where = True if stored_SK is None else stored_SK
        np.multiply(steps_KS.T, -self._nats_per_step, out=out, where=where)

    def _scalars(self, batch: pa.RecordBatch, num_tokens: int) -> np.ndarray:
        planes = self._frames(batch, "scalars", self._n_scalars * num_tokens, (4,))
        return join_planes(planes).view(np.int32).reshape(self._n_scalars, num_tokens)


def _prefix_sum_rows(values_KS: np.ndarray) -> None:
    """Replace row j by the sum of rows 0..j, in place, in log2(K) passes: five times faster than ``np.cumsum`` here."""
    shift = 1
    while shift < len(values_KS):
        values_KS[shift:] += values_KS[:-shift]
        shift *= 2
