"""The ``logits`` signal as bytes: P rows of at most K entries and T scalars. Sections:

- ``positions``: see ``positions``.
- ``counts``: number of entries in each row, u16; empty if every row has K.
- six of ``ids``.
- four of ``logprobs``, rounded to steps (an error of half a step at most), or as floats.
- ``scalars``: minus the realised token's log-probability, then the log-partition of each temperature except 1, where it
  is 0; in steps of 1/``scalar_steps_per_nat``, i24, column by column. The last row of a sequence has no realised token:
  0 on disk, NaN when read.

Integers are split into byte planes (``planes``).
"""

import numpy as np

from schemas.cache_config import CodecConfig, LogitsCapture
from teacher_cache.codec import ids, logprobs, positions
from teacher_cache.codec.compiled import refused_as_corrupt
from teacher_cache.codec.logprobs import FLOATS, quantise
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.rows import COUNT_BYTES, N_SECTIONS, SCALAR_BYTES, Layout, Rows, fill_rows
from teacher_cache.codec.sections import Frame, Sections, payload_frame, write_payload
from teacher_cache.records import LogitsSample

MAX_SCALAR_STEPS = (1 << 23) - 1  # larger scalars, including infinite ones, are clipped to ± this


class LogitsCodec:
    """Encodes and decodes the samples of shards with one code table. Thread-safe."""

    def __init__(self, capture: LogitsCapture, codec: CodecConfig, table: CodeTable) -> None:
        self._k = capture.k
        self._codec = codec
        self._table = table
        self._n_temperatures, unit_column = len(capture.temperatures), capture.temperatures.index(1.0)
        self._stored_temperatures = np.arange(self._n_temperatures) != unit_column
        steps = codec.logprobs == "steps"
        self.layout = Layout(
            id_of_code=table.id_of_code,
            code_bytes=table.code_bytes,
            unit_column=unit_column,
            steps_per_nat=codec.logprob_steps_per_nat if steps else 0,
            float_form=0 if steps else FLOATS.index(codec.logprobs),
            nats_per_scalar_step=np.float32(1 / codec.scalar_steps_per_nat),
        )
        self._row_bytes = (
            COUNT_BYTES
            + ids.most_bytes(self._k, table)
            + logprobs.most_bytes(self._k, codec)
            + SCALAR_BYTES * self._n_temperatures
        )

    def encode(self, sample: LogitsSample) -> bytes:
        """Encode the payload of one sequence.

        Raises ValueError unless log-probabilities are at most 0 and descend along each row, and no value but the last
        row's realised log-probability is NaN.
        """
        uniform = bool((sample.counts == self._k).all())
        ids_E = sample.ids.reshape(-1) if uniform else sample.ids[np.arange(self._k) < sample.counts[:, None]]
        return write_payload(
            [
                positions.encode_positions(sample.positions),
                split_planes(sample.counts, 0 if uniform else COUNT_BYTES),
                *ids.encode_ids(ids_E, sample.counts, self._table),
                *logprobs.encode_logprobs(sample.logprobs, sample.counts, self._codec),
                split_planes(self._scalars(sample), SCALAR_BYTES),
            ],
            self._codec.zstd_level,
        )

    def _scalars(self, sample: LogitsSample) -> np.ndarray:
        """Realised log-probability and stored log-partitions in steps, int32 [T, P]."""
        scalars_CP = np.concatenate([-sample.next_logprob[None], sample.log_partition.T[self._stored_temperatures]])
        if len(sample.positions) and sample.positions[-1] == sample.num_tokens - 1:
            scalars_CP[0, -1] = 0
        return quantise(scalars_CP, self._codec.scalar_steps_per_nat, MAX_SCALAR_STEPS)

    def decode(self, payload: bytes, num_tokens: int) -> LogitsSample:
        """Decode the payload of one sequence. Raises CorruptCacheError."""
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
        """Decode the payload of one sequence into ``rows``. Raises CorruptCacheError.

        A frame whose declared size is impossible for rows of this shape is refused before it is decompressed.
        """
        sections = Sections(payload_frame(payload), N_SECTIONS, self.most_bytes(len(rows.counts)))
        with refused_as_corrupt():
            fill_rows(sections.content, sections.starts, self.layout, rows)

    def frame(self, payload: bytes, num_tokens: int) -> Frame:
        """Frame in the payload of a sequence of ``num_tokens`` tokens. Raises CorruptCacheError."""
        return Frame.of(payload_frame(payload), N_SECTIONS, self.most_bytes(num_tokens))

    def most_bytes(self, num_tokens: int) -> int:
        """Upper bound of the bytes of a sequence's sections."""
        return positions.most_bytes(num_tokens) + num_tokens * self._row_bytes
