"""The rows of caches, in the trainer's order, as a map-style data set: row n is the same on every rank and worker.

Trade-off: every batch carries the row counts of its whole step, so a loss divided by them is right with any gradient
accumulation and any number of ranks. For that a process reads the tokens of rows that others train on
(``StepCounts``). ``DistillationTrainer`` sums counts over ranks instead and does without.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch.utils.data import DataLoader, Dataset, get_worker_info

from schemas.errors import UserError
from schemas.load import validate
from schemas.manifest import Manifest, Signal
from schemas.strict import Strict
from schemas.train_config import DataConfig, LoopConfig, LossConfig, Steps
from teacher_cache.signals.side_table import SIDE_SIGNALS
from trainer.api.cache_stream import CacheStream
from trainer.api.step_batches import StepBatches, rank_and_world
from trainer.api.step_counts import StepCounts
from trainer.data.batches import CacheRows
from trainer.data.data_state import DataState
from trainer.data.open_caches import read_capture
from trainer.data.shares import required_of
from trainer.data.training_data import open_training_data, plan_training
from trainer.data.worker_transfer import (
    PATIENCE,
    WORKERS_START_BY,
    Sender,
    leave_interrupts_to_main,
    shares_memory,
)
from trainer.losses.objective import Objective

if TYPE_CHECKING:
    from datasets import Dataset as RowNumbers

WHERE = "CacheDataset"
ELSEWHERE = ("align", "retarget_cache", "on_corrupt", "num_workers")
BATCHES_HELD = 64  # in shared memory at a time, at most, by a loader and who reads from it
StepBatch = dict[str, Any]
"""Tensors of a RowBatch, and, as numbers: ``step``, ``rows_consumed`` after it, ``step_rows`` (``RowCounts``)."""


class _Length(Strict):
    """Number of rows, and the seed of their order."""

    rows_per_step: int = Field(ge=1, le=1 << 20)
    steps: Steps | None
    epochs: float = Field(gt=0, le=10_000)
    seed: int = Field(ge=0, lt=2**32)


class CacheDataset(Dataset[StepBatch]):
    """All rows that a training run reads: ``steps`` steps of ``rows_per_step`` rows."""

    def __init__(
        self,
        cache: str | Path | Sequence[Mapping[str, Any]],
        losses: LossConfig | Mapping[str, Any] | None = None,
        *,
        rows_per_step: int,
        steps: int | None = None,
        epochs: float = 1.0,
        seed: int = 0,
        **data: Any,
    ) -> None:
        """Open the caches and plan the rows.

        Args:
            cache: folder or URL, or several as in ``data.cache`` of a configuration.
            losses: as ``losses`` of a configuration; they decide which signals are read.
            rows_per_step: rows of an optimiser step over all its micro-batches and ranks: the global batch.
            steps: optimiser steps; None: as many as ``epochs`` passes over the data take.
            epochs: passes over the data.
            seed: of the order, and of the losses' learned maps.
            data: more of a configuration's ``data``: packing, pack_tokens, shards_mixed, validation_fraction,
                validation_cache, …

        Raises UserError if a setting is wrong, a cache lacks what a loss needs, or nothing is left to train on.
        """
        refused = sorted(set(ELSEWHERE) & data.keys())
        if refused:
            raise UserError(f"{WHERE}: {refused[0]}: a setting of train-student only; leave it out")
        source = str(cache) if isinstance(cache, str | Path) else [dict(share) for share in cache]
        self.data = validate(DataConfig, {"cache": source, **data}, WHERE)
        if not isinstance(losses, LossConfig):
            losses = validate(LossConfig, dict(losses or {}), f"{WHERE}: losses")
        self.losses = losses
        tree = {"rows_per_step": rows_per_step, "steps": steps, "epochs": epochs, "seed": seed}
        length = validate(_Length, tree, WHERE)
        loop = LoopConfig(max_steps=length.steps, epochs=length.epochs, seed=length.seed)
        first = self.data.shares[0]
        self.capture = read_capture(first.url, required_of(first, self.data))
        objective = Objective(self.losses, self.capture)
        opened = open_training_data(self.data, objective.signals)
        self.seed, self.rows_per_step = length.seed, length.rows_per_step
        self.caches, self.digest = opened.caches, opened.digest
        plan = plan_training(self.data, loop, opened.caches, rows_per_step, DataState())
        self.rows = CacheRows(opened.cache, plan, self.data.packing)
        """The same rows without counts of steps."""
        counted: tuple[Signal, ...] = tuple(name for name in SIDE_SIGNALS if name in objective.rows)
        counter = open_training_data(self.data, ("tokens", *counted)).cache
        self._counts: StepCounts | None = StepCounts(counter, plan, rows_per_step, objective.rows)
        self.rows_consumed = 0
        """Where loaders start: rows of the plan that earlier steps, on any number of ranks, have used."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return len(self) // self.rows_per_step

    @property
    def holds_out(self) -> bool:
        """Whether there are samples for ``DistillationLoss.validate``."""
        return self.data.validation_cache is not None or self.data.validation_fraction > 0

    @property
    def manifest(self) -> Manifest:
        """Manifest of the first cache; all agree on what matters for training."""
        return self.rows.cache.manifest

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that are read."""
        return self.rows.cache.signals

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: Sequence[int]) -> StepBatch:
        """The batch of these rows, which follow each other within one step. Raises UserError, CorruptCacheError."""
        first, count, per_step = int(numbers[0]), len(numbers), self.rows_per_step
        step = first // per_step
        if [int(number) for number in numbers] != list(range(first, first + count)):
            raise UserError(
                f"{WHERE}: rows {list(numbers)[:4]}… do not follow each other; the data set is shuffled already: read "
                "it in order (shuffle=False, or train_sampling_strategy='sequential' in TrainingArguments)"
            )
        if first < 0 or first + count > len(self):
            raise IndexError(f"rows {first} to {first + count - 1} of {len(self)}")
        if first + count > (step + 1) * per_step:
            raise UserError(
                f"{WHERE}: {count} rows from {first} on are of two steps of rows_per_step = {per_step} rows; choose a "
                "batch size that divides it"
            )
        batch: StepBatch = dict(self.rows.__getitems__(list(range(first, first + count))))
        if self._counts is not None:
            batch["step_rows"] = self._counts.of_batch(batch) if count == per_step else self._counts.of(step)
        return batch | {"step": step, "rows_consumed": (step + 1) * per_step}

    def __getitem__(self, row: int) -> StepBatch:
        """A batch of one row."""
        return self.__getitems__([row])

    def collate(self, batch: Any) -> Any:
        """Collate function for data loaders: ``__getitems__`` has made the batch; in a worker it is serialised.

        Raises UserError for anything else.
        """
        if not isinstance(batch, dict):
            raise UserError(
                f"{WHERE}.collate: got a {type(batch).__name__}, wanted the batch that the data set makes; leave its "
                "columns alone (remove_unused_columns=False in TrainingArguments)"
            )
        worker = get_worker_info()
        return Sender(worker is not None and shares_memory(worker.num_workers, BATCHES_HELD))(batch)

    def batch_sampler(self, batch_size: int, rank: int | None = None, ranks: int | None = None) -> StepBatches:
        """Rows of this rank's micro-batches, from ``rows_consumed`` on; for a DataLoader's ``batch_sampler``.

        rank, ranks: default: those of ``torch.distributed``. Raises UserError unless they divide ``rows_per_step``.
        """
        own_rank, world = rank_and_world()
        rank, ranks = own_rank if rank is None else rank, world if ranks is None else ranks
        if batch_size < 1 or ranks < 1 or not 0 <= rank < ranks or self.rows_per_step % (batch_size * ranks):
            raise UserError(
                f"{WHERE}: micro-batches of {batch_size} rows on rank {rank} of {ranks} do not make up steps of "
                f"rows_per_step = {self.rows_per_step} rows; choose a batch size that divides {self.rows_per_step} by "
                f"{ranks}"
            )
        return StepBatches(self.rows_consumed, len(self), batch_size, rank, ranks)

    def loader(
        self, batch_size: int, num_workers: int = 0, rank: int | None = None, ranks: int | None = None, **options: Any
    ) -> DataLoader[StepBatch]:
        """Data loader over this rank's micro-batches; ``num_workers`` processes decode. options: of the DataLoader.

        Raises UserError as ``batch_sampler``.
        """
        return DataLoader(
            self,
            batch_sampler=self.batch_sampler(batch_size, rank, ranks),
            collate_fn=self.collate,
            num_workers=num_workers,
            **self._of_workers(num_workers) | options,
        )

    @staticmethod
    def _of_workers(num_workers: int) -> dict[str, Any]:
        if not num_workers:
            return {}
        start = {"timeout": PATIENCE, "multiprocessing_context": WORKERS_START_BY}
        return start | {"worker_init_fn": leave_interrupts_to_main}

    def stream(self, batch_size: int, rank: int | None = None, ranks: int | None = None) -> CacheStream:
        """The same micro-batches as an iterable data set, for a DataLoader with ``batch_size=None``, or by itself."""
        return CacheStream(self, self.batch_sampler(batch_size, rank, ranks))

    def uncounted(self) -> "CacheDataset":
        """The same data set whose batches have no ``step_rows``; for who counts them otherwise."""
        other = copy.copy(self)
        other._counts = None
        return other

    def row_numbers(self) -> "RowNumbers":
        """The numbers of all rows as a ``datasets.Dataset``, for trainers that take nothing else."""
        from datasets import Dataset as RowNumbers

        return RowNumbers.from_dict({"row": range(len(self))})

    def seek(self, rows: int) -> None:
        """Make loaders that are opened from now on start after the first ``rows`` rows.

        A batch's ``rows_consumed`` is their number once its step is done. Raises UserError unless steps end there.
        """
        if not 0 <= rows <= len(self) or rows % self.rows_per_step:
            raise UserError(
                f"{WHERE}: {rows} rows consumed: wanted a multiple of rows_per_step = {self.rows_per_step}, of at most "
                f"{len(self)}"
            )
        self.rows_consumed = rows

    def state_dict(self) -> dict[str, Any]:
        """Position and what it depends on: the same on every rank and for every number of ranks."""
        order = self.data.model_dump(include={"packing", "pack_tokens", "shards_mixed", "validation_fraction"})
        return order | {
            "cache_digest": self.digest,
            "seed": self.seed,
            "rows_per_step": self.rows_per_step,
            "steps": self.steps,
            "rows_consumed": self.rows_consumed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken. Raises UserError if the rows would be others."""
        own = self.state_dict()
        for name, value in own.items():
            if name != "rows_consumed" and state.get(name) != value:
                raise UserError(
                    f"{WHERE}: {name} is {value!r}, that of the state to continue from is {state.get(name)!r}; open "
                    "the same caches with the same settings"
                )
        self.seek(state["rows_consumed"])
