"""``transformers.Trainer`` for a student and TrainingArguments of one's own; no configuration file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from schemas.errors import UserError
from trainer.adapters.trained_weights import fill, save_weights, stored_weights
from trainer.api.distillation_loss import DistillationLoss, StepBatch
from trainer.run.objective_trainer import ObjectiveTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

LEARNED_FILE = "distillation_maps.safetensors"  # beside an adapter in a checkpoint, which has no other weights


class DistillationTrainer(ObjectiveTrainer):
    """Trains a student on the data set of a DistillationLoss, in its order, with its losses.

    Its epochs and steps are the data set's. A checkpoint is continued with ``train(resume_from_checkpoint=…)``, also on
    another number of ranks if the global batch stays. In front of another Trainer it replaces data and loss of that:
    ``class CacheSFTTrainer(DistillationTrainer, SFTTrainer)``.
    """

    def __init__(
        self, model: "PreTrainedModel", args: "TrainingArguments", *, loss: DistillationLoss, **others: Any
    ) -> None:
        """others: of the Trainer. Raises UserError if ``args`` and data set contradict each other."""
        self.distillation = loss
        self.objective, self.flatten = loss.objective, loss.flatten
        self.window: dict[str, torch.Tensor] = {}  # sums of terms since the last line of logs
        self.window_steps = 0
        steps = loss.dataset.steps
        if others.get("eval_dataset") is not None:
            raise UserError(
                "DistillationTrainer: eval_dataset: leave it out; validation_fraction or validation_cache of the "
                "CacheDataset say what it validates on"
            )
        if args.eval_strategy != "no" and not loss.dataset.holds_out:
            raise UserError(
                "TrainingArguments: eval_strategy is set, and nothing is held out; give the CacheDataset "
                "validation_fraction=0.05, say, or validation_cache"
            )
        if loss.dataset.rows_consumed:
            raise UserError("DistillationTrainer: continue with resume_from_checkpoint, not with rows_consumed")
        if args.max_steps not in (-1, steps):
            raise UserError(f"TrainingArguments: max_steps is {args.max_steps}, the data set has {steps}; leave it out")
        args.max_steps, args.remove_unused_columns = steps, False
        args.ddp_find_unused_parameters = False  # the head is used outside the forward pass
        given = {"train_dataset": loss.dataset, **others}
        if loss.dataset.holds_out:
            given["eval_dataset"] = given["train_dataset"]  # so that there is one; ``evaluate`` has its own
        super().__init__(model=model, args=args, **given)
        batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        rows = batch * accumulated * self.accelerator.num_processes
        if rows != loss.dataset.rows_per_step:
            raise UserError(
                f"TrainingArguments: {batch} rows per device × {accumulated} accumulated × "
                f"{self.accelerator.num_processes} ranks are {rows}, the data set's rows_per_step is "
                f"{loss.dataset.rows_per_step}; make them equal"
            )
        if self.saves_adapter and self.is_fsdp_enabled and self.learned():
            raise UserError(
                "DistillationTrainer: an adapter with FSDP would be saved without the maps that "
                f"{self.objective.learners} learn; use DDP, or train-student's student.adapter"
            )

    @property
    def saves_adapter(self) -> bool:
        """Whether the model is saved as an adapter, without its other weights."""
        return bool(getattr(self.model, "peft_config", None))

    def learned(self) -> dict[str, torch.nn.Parameter]:
        """By name: weights that losses have added to the student."""
        assert self.model is not None
        found = self.model.named_parameters()
        return {name: weight for name, weight in found if name.startswith(self.objective.learned)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        learned = self.learned()
        if self.saves_adapter and learned:
            folder = output_dir or self.args.output_dir
            assert folder is not None
            save_weights(learned, Path(folder, LEARNED_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        learned, path = self.learned(), Path(resume_from_checkpoint, LEARNED_FILE)
        if self.saves_adapter and learned:
            if not path.is_file():
                raise UserError(f"{path}: not found; the maps that the losses learn are part of a checkpoint")
            fill(learned, stored_weights(path), path)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the plan's micro-batches from row 0 on; the Trainer skips those of steps that are done, unread."""
        args = self.args
        loader = self.distillation.dataset.uncounted().loader(
            args.per_device_train_batch_size,
            args.dataloader_num_workers,
            rank=0,
            ranks=1,  # accelerate deals the batches to the ranks
            pin_memory=args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)  # MicroBatches move them

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device
    ) -> tuple[list[StepBatch], torch.Tensor | int | None]:
        """Return one step's micro-batches and their row counts, summed over ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.window_steps += 1
        numbers = ("step", "rows_consumed")
        return self.lay_out([{name: batch[name] for name in batch if name not in numbers} for batch in batches])

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: StepBatch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of the step's loss, times the ranks, over which gradients are averaged."""
        counts = self.counts_by_name(num_items_in_batch)
        progress = self.state.global_step / self.distillation.dataset.steps
        share = self.distillation.share(model, inputs, counts, progress, self.accelerator.autocast)
        self._record("loss", share.loss)
        for term in share.terms:
            self._record(term.name, term.total / counts[term.rows])
        return share.loss * self.accelerator.num_processes

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Validate and log: figures of ``DistillationLoss.validate``. The base class's arguments are ignored."""
        assert self.model is not None
        with self.accelerator.autocast():
            measured = self.distillation.validate(self.model, self.args.per_device_eval_batch_size)
        return self.report_validation(measured)

    def _record(self, name: str, value: torch.Tensor) -> None:
        self.window[name] = self.window.get(name, 0) + value.detach().float()

    def log(self, logs: dict[str, float], *others: Any, **named: Any) -> None:
        """Replace transformers' running loss, and add every term: means over the steps since the last line."""
        if "loss" in logs and self.window:
            means = {name: self.sum_over_ranks(total).item() for name, total in sorted(self.window.items())}
            logs |= {name: total / self.window_steps for name, total in means.items()}
            self.window, self.window_steps = {}, 0
        super().log(logs, *others, **named)
