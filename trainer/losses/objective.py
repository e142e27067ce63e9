"""The training objective: a weighted sum of losses over the rows that count.

Losses are *sums* over rows. The caller divides by the number of rows of the global batch, so that gradient accumulation
and several ranks equal one large batch: a mean of micro-batch means would weight tokens of short micro-batches more.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from schemas.cache_config import CaptureConfig
from schemas.manifest import Manifest, Signal
from schemas.signal_names import signal_names
from schemas.train_config import LossConfig, TargetForm
from teacher_cache.output_head import OutputHead
from trainer.losses.lean import head_loss, logits_loss
from trainer.losses.loss import Batch, FeatureLoss, HeadLoss, Loss
from trainer.losses.schedule import always_zero, weight_at
from trainer.losses.table import LOSSES
from trainer.losses.teacher_rows import TeacherRows
from trainer.student.recorder import Recorded, Recorder, together

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Term:
    """One loss: its name, its current weight, and its unweighted sum over its rows (a scalar tensor).

    ``rows``: the rows summed over, one of ``Objective.rows``.
    """

    name: str
    weight: float
    total: torch.Tensor
    rows: str = "loss_mask"


def row_count(batch: Batch, rows: str) -> torch.Tensor:
    """Number of rows of one kind in a batch, int64 scalar: True entries of a mask, or stored rows of a signal."""
    if rows in batch:
        return batch[rows].sum()
    return torch.tensor(len(batch[f"{rows}_column"]), device=batch["loss_mask"].device)


class Objective:
    """The losses of a configuration, without those whose weight is always 0."""

    def __init__(self, settings: LossConfig, capture: CaptureConfig) -> None:
        """``capture`` is the cache's. Raises UserError if the cache lacks what a loss needs."""
        for name in type(settings).model_fields:
            if name not in LOSSES:
                raise NotImplementedError(f"losses.{name}: has settings but no entry in trainer/losses/table.py")
        self.losses: dict[str, Loss[Any]] = {}
        for name, kind in LOSSES.items():
            own = getattr(settings, name, None)
            if own is not None and not always_zero(own.weight):
                self.losses[name] = kind(own, capture)
        self.rows = tuple(dict.fromkeys(["loss_mask", "attention_mask", *(loss.rows for loss in self.losses.values())]))
        self.recorder: Recorder | None = None  # set by ``attach`` if there are feature losses

    @property
    def head_losses(self) -> dict[str, HeadLoss[Any]]:
        """Losses on the student's logits, by name."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, HeadLoss)}

    @property
    def feature_losses(self) -> dict[str, FeatureLoss[Any]]:
        """Losses on features inside the student, by name."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, FeatureLoss)}

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Signals that training reads; files of others are not opened."""
        wanted = {"tokens"}.union(*(loss.signals for loss in self.losses.values()))
        return tuple(signal for signal in signal_names() if signal in wanted)

    @property
    def target(self) -> TargetForm | None:
        """Form of the target, if a loss has one."""
        return next((loss.target for loss in self.losses.values() if loss.target is not None), None)

    @property
    def notes(self) -> list[str]:
        """Messages of the losses to log before training."""
        return [note for loss in self.losses.values() if (note := loss.note()) is not None]

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the submodules that losses add to the student."""
        return tuple(loss.learns for loss in self.feature_losses.values() if loss.learns is not None)

    @property
    def learners(self) -> str:
        """``losses.NAME, …`` of the losses that add submodules, for messages."""
        return ", ".join(f"losses.{name}" for name, loss in self.feature_losses.items() if loss.learns is not None)

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> None:
        """Prepare the feature losses for this student, before it is wrapped. Raises UserError (``FeatureLoss``)."""
        wanted = [loss.attach(student, manifest, seed) for loss in self.feature_losses.values()]
        if wanted:
            self.recorder = Recorder(student, together(wanted))

    def detach(self, student: "PreTrainedModel") -> None:
        """Undo ``attach``."""
        if self.recorder is not None:
            self.recorder.close()
        for loss in self.feature_losses.values():
            loss.detach(student)

    def row_counts(self, batch: Batch) -> torch.Tensor:
        """Rows of each kind in ``rows`` in a batch, int64 [kinds]: the divisors of the losses' sums."""
        return torch.stack([row_count(batch, rows) for rows in self.rows])

    def recording(self) -> AbstractContextManager[Recorded | None]:
        """Context in which the student's forward pass is recorded, if a loss needs it."""
        return nullcontext() if self.recorder is None else self.recorder.recording()

    def head_terms(
        self, hidden_ND: torch.Tensor, head: OutputHead | None, rows: TeacherRows, progress: float
    ) -> tuple[torch.Tensor, list[Term]]:
        """The head losses at training ``progress`` in [0, 1], in one pass over the student's head.

        hidden_ND: the student's final hidden states at the rows that count; without a head, its logits there [N, V].
        Returns the weighted sum, a differentiable scalar, and the terms, whose totals are detached.
        """
        losses = self.head_losses
        if not losses:
            return hidden_ND.new_zeros((), dtype=torch.float32), []
        weights = [weight_at(loss.settings.weight, progress) for loss in losses.values()]
        loss, totals_L = head_pass(list(losses.values()), weights, hidden_ND, head, rows)
        return loss, [Term(*parts) for parts in zip(losses, weights, totals_L.unbind(), strict=True)]

    def head_terms_apart(
        self, hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows, progress: float
    ) -> list[Term]:
        """The same terms with differentiable totals, one pass over the head each: for gradient norms per term."""
        return [
            Term(name, weight_at(loss.settings.weight, progress), head_pass([loss], [1.0], hidden_ND, head, rows)[0])
            for name, loss in self.head_losses.items()
        ]

    def feature_terms(self, recorded: Recorded | None, batch: Batch, progress: float) -> list[Term]:
        """The feature losses on what was recorded in the student's forward pass, computed without autocast."""
        if recorded is None:
            return []
        with torch.autocast(next(iter(batch.values())).device.type, enabled=False):
            return [
                Term(name, weight_at(loss.settings.weight, progress), loss.total(recorded, batch), loss.rows)
                for name, loss in self.feature_losses.items()
            ]

    def figures(self) -> dict[str, torch.Tensor]:
        """Scalars to log beside the losses, by name."""
        return {name: value for loss in self.feature_losses.values() for name, value in loss.figures().items()}


def head_pass(
    losses: list[HeadLoss[Any]],
    weights: list[float],
    hidden_ND: torch.Tensor,
    head: OutputHead | None,
    rows: TeacherRows,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of one or more head losses, and the unweighted sum of each, [L]. Shapes as in ``head_loss``.

    Without a head, hidden_ND are the logits [N, V].
    """
    vocabulary = hidden_ND.shape[1] if head is None else len(head.weight_VD)
    of_chunk = [loss.of_rows(rows, vocabulary) for loss in losses]

    def loss_of_rows(logits_nV: torch.Tensor, chunk: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        totals: list[torch.Tensor] = []
        sum_nV: torch.Tensor | None = None
        for number, (loss, weight) in enumerate(zip(of_chunk, weights, strict=True), start=1):
            own_nV = logits_nV if number == len(of_chunk) else logits_nV.clone()  # it may overwrite what it is given
            per_row_n, gradient_nV = loss(own_nV, chunk)
            totals.append(per_row_n.sum())
            gradient_nV = gradient_nV if weight == 1.0 else gradient_nV.mul_(weight)
            sum_nV = gradient_nV if sum_nV is None else sum_nV.add_(gradient_nV)
        assert sum_nV is not None
        return totals, sum_nV

    joined = [joined_N for loss in losses if (joined_N := loss.joined(rows)) is not None]
    joined_N = torch.stack(joined).any(dim=0) if joined else None
    if head is None:
        return logits_loss(hidden_ND, weights, loss_of_rows, joined_N)
    return head_loss(hidden_ND, head, weights, loss_of_rows, joined_N)
