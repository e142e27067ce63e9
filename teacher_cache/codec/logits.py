"""The ``logits`` signal as bytes: S rows of at most K entries and 1 + T scalars, in five sections.

- ``counts``: entries of each row, u16; empty when every row has K. Entries beyond a row's count are not stored.
- ``ids``: each id's code (see ``permutation``) as u16, or u24 for vocabularies above 65,536; row by row.
- ``logprobs``: -log p in steps of 1/``logprob_steps_per_nat``, rounded (so off by half a step at most), as differences
  along the falling row. Most are tiny: four go in a byte, two bits each, lowest first, and every row starts a new byte.
- ``excesses``: two bits hold at most 3, which means that the next of these is to be added. u8, or u16 if one needs it.
- ``scalars``: realised token's log-probability, then one log-partition a temperature, in steps of
  1/``scalar_steps_per_nat``, i32, column by column. The last row has no realised token: 0 on disk, NaN when read.

All but ``logprobs`` are split into byte planes. The sections make one zstd frame (see ``planes``); their sizes stand
beside it.
"""

import numpy as np
import zstandard

from schemas.arrow import LOGITS_SCHEMA
from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec.message import RowReader, write_row
from teacher_cache.codec.permutation import TWO_PLANES, invert_code_table
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.rows import LARGE, PACKED, Rows, Sizes, fill_rows
from teacher_cache.codec.sections import compress_sections, decompress_sections
from teacher_cache.records import LogitsSample

MAX_STEPS = 65535  # a log-probability is stored as a u16 number of steps; lower ones are clipped
MAX_SCALAR_STEPS = 1 << 30  # scalars beyond ±2^30 steps, infinite ones too, are clipped to that
SCALAR_BYTES = 4


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
        differences_SK = self._differences(sample.logprobs, stored_SK)
        excesses_X = differences_SK[differences_SK >= LARGE] - LARGE
        sections = [
            split_planes(sample.counts, 0 if uniform else 2),
            split_planes(self._code_of_id[ids_N], self._id_planes),
            _pack(differences_SK, sample.counts)[None],
            split_planes(excesses_X, 1 if excesses_X.max(initial=0) < 256 else 2),
            split_planes(self._scalars(sample), SCALAR_BYTES),
        ]
        return write_row(LOGITS_SCHEMA, compress_sections(sections, self._compressor))

    def _differences(self, logprobs_SK: np.ndarray, stored_SK: np.ndarray | None) -> np.ndarray:
        """The entries' differences along their rows, int32 [S, K]; 0 for those that are not stored."""
        costs_SK = -logprobs_SK if stored_SK is None else np.where(stored_SK, -logprobs_SK, 0)
        steps_SK = _quantise(costs_SK, self._codec.logprob_steps_per_nat, MAX_STEPS)
        differences_SK = np.diff(steps_SK, axis=1, prepend=np.int32(0))
        if stored_SK is not None:
            differences_SK[~stored_SK] = 0
        if differences_SK.min() < 0:
            raise ValueError("log-probabilities must fall along each row and not exceed 0")
        return differences_SK

    def _scalars(self, sample: LogitsSample) -> np.ndarray:
        """The realised log-probability and the log-partitions in steps, int32 [1 + T, S]."""
        scalars_CS = np.concatenate([sample.next_logprob[None], sample.log_partition.T])
        scalars_CS[0, -1] = 0
        return _quantise(scalars_CS, self._codec.scalar_steps_per_nat, MAX_SCALAR_STEPS)


def _pack(differences_SK: np.ndarray, counts_S: np.ndarray) -> np.ndarray:
    """Four differences a byte, capped at LARGE: uint8 [B], the rows one after the other."""
    n_rows, k = differences_SK.shape
    capped_SK = np.zeros((n_rows, -(-k // PACKED) * PACKED), np.uint8)
    capped_SK[:, :k] = np.minimum(differences_SK, LARGE)
    capped_SB4 = capped_SK.reshape(n_rows, -1, PACKED)
    packed_SB = np.bitwise_or.reduce(capped_SB4 << np.arange(0, 2 * PACKED, 2, dtype=np.uint8), axis=2)
    return packed_SB[np.arange(packed_SB.shape[1]) < -(-counts_S[:, None] // PACKED)]


def _quantise(values: np.ndarray, steps_per_nat: int, limit: int) -> np.ndarray:
    """``values`` (nats; may be infinite) as int32 numbers of steps, clipped to ±``limit``. Raises ValueError on NaN."""
    steps = np.multiply(values, steps_per_nat, dtype=np.float64)
    if np.isnan(steps).any():
        raise ValueError("NaN among the values to be stored")
    np.rint(steps, out=steps)
    return np.clip(steps, -limit, limit, out=steps).astype(np.int32)


class LogitsDecoder:
    """Decodes payloads of shards that were written with one code table. Threads may share it."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: np.ndarray) -> None:
        self._k = capture.k
        self._n_scalars = 1 + len(capture.temperatures)
        self._nats_per_step = np.float32(1 / codec.logprob_steps_per_nat)
        self._nats_per_scalar_step = np.float32(1 / codec.scalar_steps_per_nat)
        self._ids_by_code = table.astype(np.int32)
        self._id_planes = 2 if len(table) <= TWO_PLANES else 3
        self._most_bytes_of_a_row = (
            2 + (self._id_planes + 2) * self._k + -(-self._k // PACKED) + SCALAR_BYTES * self._n_scalars
        )

    def decode(self, payload: bytes, num_tokens: int) -> LogitsSample:
        """Decode one sequence into arrays of its own. Raises CorruptCacheError."""
        rows = Rows(
            counts=np.empty(num_tokens, np.int32),
            ids=np.empty((num_tokens, self._k), np.int32),
            logprobs=np.empty((num_tokens, self._k), np.float32),
            next_logprob=np.empty(num_tokens, np.float32),
            log_partition=np.empty((num_tokens, self._n_scalars - 1), np.float32),
        )
        self.decode_into(payload, rows)
        return LogitsSample(**rows._asdict())

    def decode_into(self, payload: bytes, rows: Rows) -> None:
        """Decode one sequence into ``rows``. Raises CorruptCacheError.

        Nothing is decompressed before its size is known to be one that rows of this shape can have.
        """
        row = _READER.read(payload)
        limit = len(rows.counts) * self._most_bytes_of_a_row
        sections, sizes = decompress_sections(row, len(Sizes._fields), limit)
        try:
            fill_rows(
                sections,
                Sizes(*sizes),
                self._ids_by_code,
                self._id_planes,
                self._nats_per_step,
                self._nats_per_scalar_step,
                rows,
            )
        except ValueError as error:
            what, seen, wanted = error.args
            raise CorruptCacheError(f"{what}: {seen}, wanted {wanted}") from None
