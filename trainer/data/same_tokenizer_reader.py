"""Read a cache of the student's own tokenizer with rows like those of re-targeted caches, to mix it with them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.manifest import Signal
from teacher_cache.records import RowBatch
from teacher_cache.signals.draws.record import DrawsBatch
from trainer.data.alignment import CheckedReader
from trainer.data.student_side import RowForm, StudentSide, as_students
from trainer.data.wrapped_reader import WrappedReader


class SameTokenizerReader(WrappedReader):
    """Implements ``Cache``; tokens are those of the cache, entries and draws become weights."""

    signals: tuple[Signal, ...] = ("tokens", "logits")

    def __init__(self, cache: CheckedReader, side: StudentSide, rows: RowForm) -> None:
        """``cache`` must be open for the signals that ``rows.form`` is made of."""
        as_read = as_students(cache.manifest, side, rows)
        super().__init__(cache, as_read.model_copy(update={"corpus": cache.manifest.corpus}))
        self._rows = rows

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """As ``CacheReader.read_rows``, with weights at the one temperature."""
        batch = self._cache.read_rows(rows, length)
        temperature, capture = self._rows.temperature, self._cache.manifest.capture
        column = capture.logits.temperatures.index(temperature)
        partition_RL1 = batch.log_partition[..., [column]]
        ids, logprobs = batch.ids, (batch.logprobs - temperature * partition_RL1).astype(np.float32)
        if self._rows.form == "draws":
            assert capture.draws is not None
            at, tail = capture.draws.temperatures.index(temperature), capture.draws.region == "tail"
            drawn: DrawsBatch = batch.side["draws"]
            ids_RLM = np.zeros((*ids.shape[:2], capture.draws.n), np.int32)
            weights_RLM = np.zeros(ids_RLM.shape)
            ids_RLM[drawn.batch_row, drawn.column] = drawn.ids[:, at]
            tail_RL1 = np.maximum(0, 1 - np.exp(logprobs.astype(np.float64) / temperature).sum(axis=2, keepdims=True))
            share_RL1 = tail_RL1 if tail else np.ones_like(tail_RL1)
            weights_RLM[drawn.batch_row, drawn.column] = (share_RL1 / capture.draws.n)[drawn.batch_row, drawn.column]
            with np.errstate(divide="ignore"):
                drawn_RLM = (temperature * np.log(weights_RLM)).astype(np.float32)
            ids = np.concatenate([ids, ids_RLM], axis=2) if tail else ids_RLM
            logprobs = np.concatenate([logprobs, drawn_RLM], axis=2) if tail else drawn_RLM
        missing = ((0, 0), (0, 0), (0, self._rows.entries - ids.shape[2]))
        return replace(
            batch,
            ids=np.pad(ids, missing),
            logprobs=np.pad(logprobs, missing, constant_values=-np.inf),
            log_partition=np.zeros_like(partition_RL1),
            side={},
        )
