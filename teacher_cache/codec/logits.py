"""The ``logits`` signal as bytes: P rows of at most K entries and T scalars. Sections:

- ``positions``: see ``positions``.
- ``counts``: entries of each row, u16; empty when every row has K.
- six of ``ids``.
- four of ``logprobs``, rounded to steps (so off by half a one at most), or as floats.
- ``scalars``: minus the realised token's log-probability, then the log-partition of each temperature but 1, where it is
  0; in steps of 1/``scalar_steps_per_nat``, i24, column by column. The last row of a sequence has no realised token: 0
  on disk, NaN when read.

Integers are split into byte planes (``planes``).
"""

import numpy as np

from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError
from teacher_cache.codec import ids, logprobs, positions
from teacher_cache.codec.compiled import refused_as_corrupt
from teacher_cache.codec.logprobs import FLOAT_BYTES, from_bits, quantise
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.rows import COUNT_BYTES, LOGPROBS, N_SECTIONS, SCALAR_BYTES, SCALARS, Rows, fill_rows
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.records import LogitsSample

MAX_SCALAR_STEPS = (1 << 23) - 1  # scalars beyond ± that many steps, infinite ones too, are clipped to it


class LogitsCodec:
    """Encodes and decodes sequences of shards with one code table. Threads may share it."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: CodeTable) -> None:
        self._k = capture.k
        self._codec = codec
        self._table = table
        self._steps_per_nat = codec.logprob_steps_per_nat if codec.logprobs == "steps" else 0
        self._n_temperatures, self._unit_column = len(capture.temperatures), capture.temperatures.index(1.0)
        self._stored_temperatures = np.arange(self._n_temperatures) != self._unit_column
        self._row_bytes = (
            COUNT_BYTES
            + ids.most_bytes(self._k, table)
            + logprobs.most_bytes(self._k, codec)
            + SCALAR_BYTES * self._n_temperatures
        )

    def encode(self, sample: LogitsSample) -> bytes:
        """The payload of one sequence's logits member.

        Raises ValueError unless log-probabilities are at most 0 and fall along each row, and nothing but the last row's
        realised log-probability is NaN.
        """
        uniform = bool((sample.counts == self._k).all())
        stored_PK = np.arange(self._k) < sample.counts[:, None]
        return write_payload(
            [
                positions.encode_positions(sample.positions),
                split_planes(sample.counts, 0 if uniform else COUNT_BYTES),
                *ids.encode_ids(sample.ids[stored_PK], sample.counts, self._table),
                *logprobs.encode_logprobs(sample.logprobs, sample.counts, self._codec),
                split_planes(self._scalars(sample), SCALAR_BYTES),
            ],
            self._codec.zstd_level,
        )

    def _scalars(self, sample: LogitsSample) -> np.ndarray:
        """The realised log-probability and the stored log-partitions in steps, int32 [T, P]."""
        scalars_CP = np.concatenate([-sample.next_logprob[None], sample.log_partition.T[self._stored_temperatures]])
        if len(sample.positions) and sample.positions[-1] == sample.num_tokens - 1:
            scalars_CP[0, -1] = 0
        return quantise(scalars_CP, self._codec.scalar_steps_per_nat, MAX_SCALAR_STEPS)

    def decode(self, payload: bytes, num_tokens: int) -> LogitsSample:
        """Decode one sequence into arrays of its own. Raises CorruptCacheError."""
        rows = Rows(
            counts=np.empty(num_tokens, np.int32),
            ids=np.empty((num_tokens, self._k), np.int32),
            logprobs=np.empty((num_tokens, self._k), np.float32),
            next_logprob=np.empty(num_tokens, np.float32),
            log_partition=np.empty((num_tokens, self._n_temperatures), np.float32),
        )
        self.decode_into(payload, rows)
        stored = np.flatnonzero(rows.counts).astype(np.int32)
        return LogitsSample(num_tokens, stored, *(array[stored] for array in rows))

    def decode_into(self, payload: bytes, rows: Rows) -> None:
        """Decode one sequence into ``rows``. Raises CorruptCacheError.

        Nothing is decompressed before its size is known to be one that rows of this shape can have.
        """
        num_tokens = len(rows.counts)
        limit = positions.most_bytes(num_tokens) + num_tokens * self._row_bytes
        sections = Sections(payload_frame(payload), N_SECTIONS, limit)
        with refused_as_corrupt():
            fill_rows(
                sections.content,
                sections.starts,
                self._table.id_of_code,
                self._table.code_bytes,
                self._unit_column,
                self._steps_per_nat,
                np.float32(1 / self._codec.scalar_steps_per_nat),
                rows,
            )
        if self._codec.logprobs != "steps":
            bits_E = sections.integers(LOGPROBS, (int(rows.counts.sum()),), FLOAT_BYTES[self._codec.logprobs])
            values_E = from_bits(bits_E, self._codec.logprobs)
            for empty in range(LOGPROBS + 1, SCALARS):
                sections.integers(empty, (0,), 1)
            if not (values_E <= 0).all():
                raise CorruptCacheError("a log-probability is above 0 or not a number")
            stored_SK = np.arange(self._k) < rows.counts[:, None]
            rows.logprobs[stored_SK] = values_E
            rows.logprobs[~stored_SK] = -np.inf
