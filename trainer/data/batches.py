"""Data set over a cache, and its loaders.

A batch is read in one vectorised call: torch's DataLoader passes ``__getitems__`` all row numbers of a batch, and the
reader decodes them into padded arrays.
"""

import logging
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from schemas.errors import CorruptCacheError
from teacher_cache.records import RowBatch
from trainer.data.readable import Readable
from trainer.data.worker_transfer import (
    PATIENCE,
    WORKERS_START_BY,
    Batch,
    Sender,
    leave_interrupts_to_main,
    shares_memory,
)

logger = logging.getLogger(__name__)
SAMPLES_AHEAD = 8192  # samples whose shards are prefetched


def to_tensors(rows: RowBatch, packed: bool) -> Batch:
    """Tensors that share the memory of a RowBatch; ``position_ids`` only if ``packed``.

    Arrays of a side signal are prefixed with its name, as in ``hidden_values``, those of pieces with ``piece_``.
    """
    names = ["input_ids", "attention_mask", "loss_mask", "ids", "logprobs", "next_logprob", "log_partition"]
    if packed:
        names.append("position_ids")
    batch = {name: torch.from_numpy(getattr(rows, name)) for name in names}
    if rows.pieces is not None:
        batch |= {f"piece_{name}": torch.from_numpy(array) for name, array in rows.pieces._asdict().items()}
    if rows.dense is not None:
        batch["dense"] = torch.from_numpy(rows.dense)
    if rows.classes is not None:
        batch["classes"] = torch.from_numpy(rows.classes)
    for signal, part in rows.side.items():
        batch |= {f"{signal}_{name}": torch.from_numpy(array) for name, array in vars(part).items()}
    return batch


class Plan(Protocol):
    """Assigns samples to rows."""

    def __len__(self) -> int:
        """Number of rows."""

    def rows(self, numbers: Sequence[int]) -> list[list[int]]:
        """The samples of each of these rows."""

    def ahead(self, row: int, count: int) -> np.ndarray:
        """About ``count`` samples that are read next, from this row on."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)


class CacheRows(Dataset[Batch], Generic[AnyPlan]):
    """The planned rows of a cache as a map-style data set, read a batch at a time."""

    def __init__(self, cache: Readable, plan: AnyPlan, packed: bool = False, skip_corrupt: bool = False) -> None:
        """``skip_corrupt``: leave out samples that cannot be read; each batch then counts them in ``skipped``."""
        self.cache = cache
        self.plan = plan
        self.packed = packed
        self.skip_corrupt = skip_corrupt

    def __len__(self) -> int:
        return len(self.plan)

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The batch of these rows of the plan, padded to its longest row. Raises CorruptCacheError."""
        self.cache.fetch_ahead(self.plan.ahead(numbers[0], SAMPLES_AHEAD))
        rows = self.plan.rows(numbers)
        if not self.skip_corrupt:
            return self._read(rows)
        skipped = 0
        try:
            batch = self._read(rows)
        except CorruptCacheError:
            sound = [[sample for sample in row if self._is_sound(sample)] for row in rows]
            skipped = sum(map(len, rows)) - sum(map(len, sound))
            batch = self._read(sound, None if any(sound) else 1)
        return batch | {"skipped": torch.tensor([skipped])}

    def _read(self, rows: list[list[int]], length: int | None = None) -> Batch:
        return to_tensors(self.cache.read_rows(rows, length), self.packed)

    def _is_sound(self, sample: int) -> bool:
        try:
            self._read([[sample]])
        except CorruptCacheError as error:
            logger.warning("skipped: %s", error)
            return False
        return True

    def __getitem__(self, row: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([row])


def already_a_batch(batch: Any) -> Any:
    """Collate function: ``__getitems__`` has already made the batch."""
    return batch


def training_loader(
    rows: CacheRows[Any],
    start: int,
    batch_rows: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    batches_held: int = 1,
) -> DataLoader[Any]:
    """Batches of ``batch_rows`` rows in the plan's order, from row ``start`` on; ``num_workers`` processes decode.

    ``batches_held``: batches that the caller keeps at a time. Loaders draw seeds of workers from generators of their
    own: at resume another loader starts, and dropout must go on as if none had.
    """
    return DataLoader(
        rows,
        batch_size=batch_rows,
        sampler=range(start, len(rows)),
        collate_fn=Sender(shares_memory(num_workers, batches_held)),
        num_workers=num_workers,
        timeout=PATIENCE if num_workers else 0,
        multiprocessing_context=WORKERS_START_BY if num_workers else None,
        worker_init_fn=leave_interrupts_to_main,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def evaluation_loader(
    cache: Readable, plan: Plan, batch_rows: int, rank: int = 0, world: int = 1, skip_corrupt: bool = False
) -> DataLoader[Any]:
    """Batches of ``batch_rows`` rows in the plan's order, decoded in this process; rows are dealt to ranks in turn."""
    rows = range(rank, len(plan), world)
    data = CacheRows(cache, plan, skip_corrupt=skip_corrupt)
    return DataLoader(
        data, batch_size=batch_rows, sampler=rows, collate_fn=already_a_batch, generator=torch.Generator()
    )
