"""``transformers.Trainer`` for an Objective: losses are divided by the rows of the whole step, over all ranks."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import Trainer

from trainer.data.worker_transfer import Batch
from trainer.losses.objective import Objective
from trainer.run.micro_batches import MicroBatches
from trainer.student.token_layout import token_layout


class ObjectiveTrainer(Trainer):
    """Base of the trainers that minimise an Objective; a subclass computes the loss."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the rows of the whole global batch
    objective: Objective  # attached to the student
    flatten: bool  # as for ``token_layout``

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum ``values`` over all ranks; the result is on their device."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), "sum").to(values.device)

    def lay_out(self, batches: Sequence[Batch], *more: int) -> tuple[list[Batch], torch.Tensor]:
        """One step's micro-batches, to be computed in turn, and their row counts, ``objective.rows`` order.

        Counts are summed over micro-batches and ranks, int64 on the device; ``more`` are summed over ranks beside them.
        """
        counts = torch.stack([self.objective.row_counts(batch) for batch in batches]).sum(dim=0)
        counts = self.sum_over_ranks(torch.cat([counts, counts.new_tensor(more)]).to(self.args.device))
        laid_out = [{**batch, "layout": token_layout(batch, self.flatten)} for batch in batches]
        return cast("list[Batch]", MicroBatches(laid_out, self.args.device)), counts

    def counts_by_name(self, counts: torch.Tensor | int | None) -> dict[str, torch.Tensor]:
        """Row counts of ``lay_out`` as divisors."""
        assert isinstance(counts, torch.Tensor)
        return dict(zip(self.objective.rows, counts.clamp(min=1), strict=True))

    def report_validation(self, measured: dict[str, float]) -> dict[str, float]:
        """Log measures, and tell callbacks; returns them by their names in logs."""
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """MicroBatches have moved them."""
        return inputs

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Exclude the losses' own maps from weight decay: their loss is scale-invariant, so they would only shrink."""
        learned = self.objective.learned
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith(learned)]
