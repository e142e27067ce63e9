"""Row counts of whole steps, by which the losses of their micro-batches are divided.

A step's rows follow from its number alone, so any process counts them by itself, without asking the others. It reads
the tokens of all of them, and the signals whose stored rows are counted, but no logits.
"""

from functools import lru_cache

import torch

from trainer.data.batches import to_tensors
from trainer.data.readable import Readable
from trainer.data.row_plan import RowPlan
from trainer.losses.objective import row_count

STEPS_KEPT = 4  # processes that decode ahead are at most a few steps apart
ROWS_AT_A_TIME = 64


class StepCounts:
    """Counts of the rows of a plan, step by step."""

    def __init__(self, cache: Readable, plan: RowPlan, rows_per_step: int, kinds: tuple[str, ...]) -> None:
        """cache: reads the tokens and the signals among ``kinds``, which are ``Objective.rows``."""
        self.cache = cache
        self.plan = plan
        self.rows_per_step = rows_per_step
        self.kinds = kinds
        self._prepare()

    def _prepare(self) -> None:
        self._of = lru_cache(STEPS_KEPT)(self._count)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_of"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def of(self, step: int) -> dict[str, int]:
        """Rows of each kind in a step over all its micro-batches and ranks, at least 1. Raises CorruptCacheError."""
        return dict(self._of(step))

    def of_batch(self, batch: dict[str, torch.Tensor]) -> dict[str, int]:
        """The same for a batch that is a whole step."""
        return {kind: max(1, int(row_count(batch, kind))) for kind in self.kinds}

    def _count(self, step: int) -> dict[str, int]:
        counts = dict.fromkeys(self.kinds, 0)
        first, end = step * self.rows_per_step, (step + 1) * self.rows_per_step
        for start in range(first, end, ROWS_AT_A_TIME):
            rows = self.plan.rows(range(start, min(start + ROWS_AT_A_TIME, end)))
            batch = to_tensors(self.cache.read_rows(rows), packed=False)
            for kind in self.kinds:
                counts[kind] += int(row_count(batch, kind))
        return {kind: max(1, count) for kind, count in counts.items()}
