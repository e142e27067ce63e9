"""A cache's reader for training: the first reads, and a sample of the later ones, are held against their own tokens.

Files can be whole, and their rows stand at the wrong tokens all the same: what made them was off by one. Nothing in a
loss would tell. The check costs several times what reading the same rows costs, so later only one row of a batch in
LATER is looked at: less than 1 % of the time of reading.
"""

from collections.abc import Sequence

from schemas.errors import CorruptCacheError, UserError
from teacher_cache.consistency import contradictions, rows_of_batch
from teacher_cache.records import RowBatch
from teacher_cache.shards.reader import CacheReader

FIRST = 2  # reads of which every row is looked at
LATER = 64  # reads, of one of which one row is


class CheckedReader(CacheReader):
    """Raises UserError where stored rows contradict their tokens. Counts reads anew in every process."""

    _reads = 0

    def read_rows(
        self, rows: Sequence[Sequence[int]], length: int | None = None, threads: int | None = None
    ) -> RowBatch:
        """As of any reader."""
        try:
            batch = super().read_rows(rows, length, threads)
        except CorruptCacheError as error:
            raise CorruptCacheError(f"{error}; `cache-tools verify {self.url}` lists every problem") from None
        number, self._reads = self._reads, self._reads + 1
        if number < FIRST:
            self._check(rows, batch, range(len(rows)))
        elif number % LATER == 0 and rows:
            self._check(rows, batch, [number // LATER % len(rows)])
        return batch

    def _check(self, rows: Sequence[Sequence[int]], batch: RowBatch, looked_at: Sequence[int]) -> None:
        if batch.ids.shape[2] == 0:  # the logits are not read
            return
        for row in looked_at:
            stored = rows_of_batch(batch, row)
            n_counting, n_stored = int(batch.loss_mask[row].sum()), len(stored.counts_N)
            problem = f"{n_stored} of {n_counting} rows that count are stored" if n_stored < n_counting else ""
            for what, wrong_N in contradictions(stored, self.manifest):
                problem = problem or f"{what} (at {wrong_N.sum()} of {n_stored} rows)"
            if problem:
                raise UserError(
                    f"{self.where(rows[row][0], 'logits')}{' and those packed with it' if len(rows[row]) > 1 else ''}: "
                    f"{problem}: rows stand at wrong tokens, or are missing; `cache-tools verify {self.url}` says how"
                )
