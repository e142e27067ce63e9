"""Lightning module of a student and its losses. Needs the ``lightning`` package."""

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from schemas.errors import UserError
from trainer.api.distillation_loss import DistillationLoss, StepBatch

STATE = "distillation"  # in a checkpoint


class RestOfRun:
    """Micro-batches from a row on, of the length of the whole run, as Lightning counts after a resumption.

    No DataLoader, for Lightning would deal its rows to ranks once more. ``state_dict`` and ``load_state_dict`` tell
    Lightning that it can be resumed; its position is in the module's part of a checkpoint.
    """

    def __init__(self, loader: DataLoader[StepBatch], micro_batches: int) -> None:
        """micro_batches: of the whole run."""
        self._loader, self._micro_batches = loader, micro_batches

    def __len__(self) -> int:
        return self._micro_batches

    def __iter__(self) -> Iterator[StepBatch]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore it."""


class DistillationModule(lightning.LightningModule):
    """Trains the student of a DistillationLoss on its data set; a subclass has ``configure_optimizers``.

    Logs ``loss`` and every term. Any ``accumulate_grad_batches`` is right that makes up the data set's steps. A
    checkpoint continues after its last whole step, also on another number of ranks.
    """

    def __init__(self, loss: DistillationLoss, batch_size: int, num_workers: int = 0) -> None:
        """batch_size: rows of a micro-batch. num_workers: processes that decode. Raises UserError."""
        super().__init__()
        if loss.student is None:
            raise UserError("DistillationModule: the DistillationLoss was made without a student")
        self.student = loss.student
        self.loss = loss
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> RestOfRun:
        """Return this rank's micro-batches. Raises UserError unless the Trainer's settings make up whole steps."""
        trainer, dataset = self.trainer, self.loss.dataset
        accumulated, ranks = trainer.accumulate_grad_batches, trainer.world_size
        rows = self.batch_size * accumulated * ranks
        if rows != dataset.rows_per_step:
            raise UserError(
                f"DistillationModule: {self.batch_size} rows × {accumulated} accumulate_grad_batches × {ranks} ranks "
                f"are {rows}, the data set's rows_per_step is {dataset.rows_per_step}; make them equal"
            )
        loader = dataset.loader(self.batch_size, self.num_workers, trainer.global_rank, ranks)
        return RestOfRun(loader, dataset.steps * accumulated)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the position in the data."""
        dataset = self.loss.dataset
        checkpoint[STATE] = dataset.state_dict() | {"rows_consumed": self.trainer.global_step * dataset.rows_per_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue in the data where it was saved. Raises UserError if it has no position, or one in other data."""
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return  # the weights alone are wanted
        if STATE not in checkpoint:
            raise UserError("DistillationModule: the checkpoint has no position in a data set; continue one of its own")
        dataset = self.loss.dataset
        dataset.load_state_dict(checkpoint[STATE])
        micro_batches = dataset.rows_consumed // dataset.rows_per_step * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["current"]["ready"] != micro_batches:  # saved within a step, or by another number of ranks
            for counts in (progress["current"], progress["total"]):
                counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), micro_batches))

    def training_step(self, batch: StepBatch, *others: Any) -> torch.Tensor:
        """Return the micro-batch's share of the loss, times what Lightning will divide it by."""
        found, trainer = self.loss(self.student, batch), self.trainer
        shown = {name: term * trainer.world_size for name, term in found.terms.items()}
        accumulated = trainer.accumulate_grad_batches
        for name, value in {"loss": found.total.detach(), **shown}.items():
            self.log(name, value * accumulated, batch_size=self.batch_size)
        return found.total * accumulated
