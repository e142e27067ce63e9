"""The training objective: a weighted sum of losses over the rows that count.

Losses are *sums* over rows. The caller divides by the number of rows of the whole global batch, which is what makes
gradient accumulation (and several ranks) equal one large batch: a mean of per-micro-batch means would give a token in
a short micro-batch more weight than one in a long micro-batch.
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
from trainer.losses.lean import head_loss
from trainer.losses.loss import Batch, FeatureLoss, HeadLoss, Loss
from trainer.losses.schedule import always_zero, weight_at
from trainer.losses.table import LOSSES
from trainer.losses.teacher_rows import TeacherRows
from trainer.student.recorder import Recorded, Recorder, together

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Term:
    """One loss: its name, its weight now, and its sum over its rows (a scalar tensor, before the weight).

    ``rows`` names what the sum is over, one of ``Objective.rows``.
    """

    name: str
    weight: float
    total: torch.Tensor
    rows: str = "loss_mask"


def row_count(batch: Batch, rows: str) -> torch.Tensor:
    """How many rows of a kind a batch has, int64 scalar: where a mask holds, or where a signal is stored."""
    if rows in batch:
        return batch[rows].sum()
    return torch.tensor(len(batch[f"{rows}_column"]), device=batch["loss_mask"].device)


class Objective:
    """The losses that a configuration asks for. One whose weight is always 0 is left out."""

    def __init__(self, settings: LossConfig, capture: CaptureConfig) -> None:
        """``capture`` is the cache's. Raises UserError when it does not have what a loss learns from."""
        for name in type(settings).model_fields:
            if name not in LOSSES:
                raise NotImplementedError(f"losses.{name}: has settings, but no line in trainer/losses/table.py")
        self.losses: dict[str, Loss[Any]] = {}
        for name, kind in LOSSES.items():
            own = getattr(settings, name, None)
            if own is not None and not always_zero(own.weight):
                self.losses[name] = kind(own, capture)
        self.rows = tuple(dict.fromkeys(["loss_mask", "attention_mask", *(loss.rows for loss in self.losses.values())]))
        self.recorder: Recorder | None = None  # set when there is a student and a loss on its features

    @property
    def head_losses(self) -> dict[str, HeadLoss[Any]]:
        """Those on the student's logits."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, HeadLoss)}

    @property
    def feature_losses(self) -> dict[str, FeatureLoss[Any]]:
        """Those on features inside the student."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, FeatureLoss)}

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that training reads; no file of another one is touched."""
        wanted = {"tokens"}.union(*(loss.signals for loss in self.losses.values()))
        return tuple(signal for signal in signal_names() if signal in wanted)

    @property
    def target(self) -> TargetForm | None:
        """The form of the target that is learned from, if any is."""
        return next((loss.target for loss in self.losses.values() if loss.target is not None), None)

    @property
    def notes(self) -> list[str]:
        """What the losses want logged before training starts."""
        return [note for loss in self.losses.values() if (note := loss.note()) is not None]

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the submodules of the student that are a loss's own."""
        return tuple(loss.learns for loss in self.feature_losses.values() if loss.learns is not None)

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> None:
        """Get ready for this student, before it is wrapped. Raises UserError when it lacks what a loss compares."""
        wanted = [loss.attach(student, manifest, seed) for loss in self.feature_losses.values()]
        if wanted:
            self.recorder = Recorder(student, together(wanted))

    def detach(self, student: "PreTrainedModel") -> None:
        """Take off the student what ``attach`` has put on it."""
        if self.recorder is not None:
            self.recorder.close()
        for loss in self.feature_losses.values():
            loss.detach(student)

    def row_counts(self, batch: Batch) -> torch.Tensor:
        """How many rows of each kind in ``rows`` a batch has, int64 [kinds]: what sums of losses are divided by."""
        return torch.stack([row_count(batch, rows) for rows in self.rows])

    def recording(self) -> AbstractContextManager[Recorded | None]:
        """Within the block the student's forward pass is recorded, if a loss needs it."""
        return nullcontext() if self.recorder is None else self.recorder.recording()

    def head_terms(
        self, hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows, progress: float
    ) -> tuple[torch.Tensor, list[Term]]:
        """The losses on the logits, at training ``progress`` in [0, 1], from one pass over the student's head.

        hidden_ND: the student's final hidden states at the rows that count. Returns the terms' weighted sum, which
        gradients flow through, and the terms, whose totals are for reading only.
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
        """The same terms, each from a pass of its own, with totals that gradients flow through: for diagnosis."""
        return [
            Term(name, weight_at(loss.settings.weight, progress), head_pass([loss], [1.0], hidden_ND, head, rows)[0])
            for name, loss in self.head_losses.items()
        ]

    def feature_terms(self, recorded: Recorded | None, batch: Batch, progress: float) -> list[Term]:
        """The losses on what was recorded of the student in its forward pass."""
        if recorded is None:
            return []
        return [
            Term(name, weight_at(loss.settings.weight, progress), loss.total(recorded, batch), loss.rows)
            for name, loss in self.feature_losses.items()
        ]

    def figures(self) -> dict[str, torch.Tensor]:
        """What is logged beside the losses, scalars."""
        return {name: value for loss in self.feature_losses.values() for name, value in loss.figures().items()}


def head_pass(
    losses: list[HeadLoss[Any]], weights: list[float], hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of one or more losses on the logits, and each one's sum [L] before its weight."""
    of_chunk = [loss.of_rows(rows, len(head.weight_VD)) for loss in losses]

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

    return head_loss(hidden_ND, head, weights, loss_of_rows)
