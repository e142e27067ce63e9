"""Lightning module of a student and its losses. Needs the ``lightning`` package."""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from schemas.errors import UserError
from trainer.api.distillation_loss import DistillationLoss, StepBatch


class DistillationModule(lightning.LightningModule):
    """Trains the student of a DistillationLoss on its data set; a subclass has ``configure_optimizers``.

    Logs ``loss`` and every term. Any ``accumulate_grad_batches`` is right that makes up the data set's steps.
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

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """Return this rank's micro-batches. Raises UserError unless the Trainer's settings make up whole steps."""
        trainer, dataset = self.trainer, self.loss.dataset
        accumulated, ranks = trainer.accumulate_grad_batches, trainer.world_size
        rows = self.batch_size * accumulated * ranks
        if rows != dataset.rows_per_step:
            raise UserError(
                f"DistillationModule: {self.batch_size} rows × {accumulated} accumulate_grad_batches × {ranks} ranks "
                f"are {rows}, the data set's rows_per_step is {dataset.rows_per_step}; make them equal"
            )
        return dataset.loader(self.batch_size, self.num_workers, trainer.global_rank, trainer.world_size)

    def training_step(self, batch: StepBatch, *others: Any) -> torch.Tensor:
        """Return the micro-batch's share of the loss, times what Lightning will divide it by."""
        found, trainer = self.loss(self.student, batch), self.trainer
        shown = {name: term * trainer.world_size for name, term in found.terms.items()}
        accumulated = trainer.accumulate_grad_batches
        for name, value in {"loss": found.total.detach(), **shown}.items():
            self.log(name, value * accumulated, batch_size=self.batch_size)
        return found.total * accumulated
