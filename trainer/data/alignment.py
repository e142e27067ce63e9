"""A cache reader for training that checks rows against their tokens: in its first reads, and now and then afterwards.

Checksums do not detect rows stored at wrong tokens, for example by a writer that was off by one, and no loss reveals
it. The check costs several times as much as reading the same rows, so after the first reads only one row of one batch
in LATER is checked.
"""

from collections.abc import Sequence

import numpy as np

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest
from teacher_cache.output_head import OutputHead
from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.logits.consistency import Rows, contradictions, rows_of_batch
from teacher_cache.signals.side_table import SIDE_SIGNALS
from trainer.data.readable import Cache
from trainer.data.row_plan import RowPlan

FIRST = 2  # reads whose rows are all checked
LATER = 64  # after these, one row of every LATER-th read is checked
FIRST_SAMPLES = 4  # samples per cache whose target signals are checked against their logits before the first step


class CheckedReader(CacheReader):
    """Raises UserError where stored rows contradict their tokens. Each process counts its own reads."""

    _reads = 0

    def read_rows(
        self, rows: Sequence[Sequence[int]], length: int | None = None, threads: int | None = None
    ) -> RowBatch:
        """As ``CacheReader.read_rows``, with the check."""
        try:
            batch = super().read_rows(rows, length, threads)
        except CorruptCacheError as error:
            raise explained(error, self.url) from None
        number, self._reads = self._reads, self._reads + 1
        if number < FIRST:
            self._check(rows, batch, range(len(rows)))
        elif number % LATER == 0 and rows:
            self._check(rows, batch, [number // LATER % len(rows)])
        check_covered(batch)
        return batch

    def _check(self, rows: Sequence[Sequence[int]], batch: RowBatch, looked_at: Sequence[int]) -> None:
        if batch.ids.shape[2] == 0:  # the logits are not read
            return
        for row in looked_at:
            problem = problem_of(rows_of_batch(batch, row), int(batch.loss_mask[row].sum()), self.manifest)
            if problem:
                where = self.where(rows[row][0], "logits")
                raise refused(where + (" and those packed with it" if len(rows[row]) > 1 else ""), problem, self.url)


def check_covered(batch: RowBatch) -> None:
    """Raise CorruptCacheError if rows that count are not stored."""
    if batch.ids.shape[2] and np.isneginf(batch.logprobs[..., 0][batch.loss_mask]).any():
        raise CorruptCacheError("the logits signal lacks rows of a batch that count")
    for signal, part in batch.side.items():
        if not SIDE_SIGNALS[signal].is_target:
            continue
        found, wanted = int(batch.loss_mask[part.batch_row, part.column].sum()), int(batch.loss_mask.sum())
        if found != wanted:
            raise CorruptCacheError(f"the {signal} signal has {found} of the {wanted} rows of a batch that count")


def problem_of(stored: Rows, n_counting: int, manifest: Manifest) -> str:
    """The first contradiction between rows and their tokens, "" if there is none; ``n_counting`` should be stored."""
    n_stored = len(stored.counts_N)
    if n_stored < n_counting:
        return f"only {n_stored} of {n_counting} rows that count are stored"
    for what, wrong_N in contradictions(stored, manifest):
        return f"{what} (at {wrong_N.sum()} of {n_stored} rows)"
    return ""


def check_first_samples(caches: Sequence[Cache], plan: RowPlan, row: int, head: OutputHead | None) -> None:
    """Raise UserError if target signals contradict the logits, in the first samples from ``row`` of the plan on.

    Training reads these signals without the logits; where those are missing or damaged, nothing is checked.
    """
    numbers = range(row, min(row + FIRST_SAMPLES * len(caches), len(plan)))
    samples = np.array([sample for found in plan.rows(numbers) for sample in found], np.int64)
    first = 0
    for cache in caches:
        end = first + int(cache.shard_sizes.sum())
        own = samples[(samples >= first) & (samples < end)][:FIRST_SAMPLES] - first
        first = end
        signals = [signal for signal in cache.signals if signal in SIDE_SIGNALS and SIDE_SIGNALS[signal].is_target]
        if not signals or not len(own):
            continue
        try:
            reader = CacheReader(cache.url, ("tokens", "logits", *signals), cache.manifest)
            for sample in own.tolist():
                _check_against_logits(reader, sample, head)
            reader.close()
        except CorruptCacheError:
            continue  # training reports damage in what it reads


def _check_against_logits(reader: CacheReader, sample: int, head: OutputHead | None) -> None:
    logits = reader.read_logits(sample)
    for name, settings in reader.manifest.capture.side_settings.items():
        kind = SIDE_SIGNALS[name]
        if name not in reader.signals or not kind.is_target:
            continue
        found, problem = reader.read(sample, name), ""
        for what, rows in kind.contradictions(found, logits, settings, reader.manifest):
            problem = problem or f"{what} (at {len(rows)} of {len(found.positions)} rows)"
        if kind.needs_head and head is not None:
            problem = problem or kind.rebuilt_problem(found, logits, settings, head)
        if problem:
            raise refused(reader.where(sample, name), problem, reader.url)


def explained(error: CorruptCacheError, url: str) -> CorruptCacheError:
    """The same error with advice."""
    return CorruptCacheError(f"{error}; `cache-tools verify {url}` lists every problem")


def refused(where: str, problem: str, url: str) -> UserError:
    """The error for rows that contradict their tokens."""
    return UserError(f"{where}: {problem}: rows are at wrong tokens or missing; `cache-tools verify {url}` explains")
