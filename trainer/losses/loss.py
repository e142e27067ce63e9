"""Interface of a loss. Two kinds: on the student's logits, and on features inside the student.

A loss is constructed from its settings before the student is loaded. It returns *sums* over its rows; the trainer
divides them by the number of rows of the global batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import torch

from schemas.cache_config import CaptureConfig
from schemas.manifest import Manifest, Signal
from schemas.train_config import TargetForm, WeightSchedule
from trainer.losses.teacher_rows import TeacherRows
from trainer.student.recorder import Recorded, Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]  # tensors of a RowBatch
Pair = tuple[torch.Tensor, torch.Tensor]
LossOfChunk = Callable[[torch.Tensor, slice], Pair]
"""Maps the logits [n, V] of a slice of the rows, float32 or float64, to the loss of each row [n] and the gradient of
their sum with respect to the logits, [n, V]. It may overwrite the logits; the caller overwrites the gradient."""


class Weighted(Protocol):
    """Settings of a loss."""

    @property
    def weight(self) -> WeightSchedule:
        """Its weight in the objective."""


Settings = TypeVar("Settings", bound=Weighted)


class Loss(ABC, Generic[Settings]):
    """One loss of the objective."""

    rows: ClassVar[str] = "loss_mask"  # the rows summed over: a mask of the batch, or a signal (its stored rows)
    signals: frozenset[Signal] = frozenset()  # signals it reads, beside the tokens
    target: TargetForm | None = None  # form of the teacher's distributions, for a loss that learns from them

    def __init__(self, settings: Settings, capture: CaptureConfig) -> None:
        """``capture`` is the cache's. Raises UserError if the cache lacks what the settings need."""
        self.settings = settings
        self.capture = capture

    @abstractmethod
    def title(self) -> str:
        """Title in the model card: a few words of Markdown."""

    def note(self) -> str | None:
        """Message to log before training, if any."""
        return None


class HeadLoss(Loss[Settings]):
    """A loss on the student's logits at the rows that count, computed in chunks of rows (``lean``)."""

    @abstractmethod
    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """The loss against these rows of the teacher, for a student of ``vocabulary`` tokens (rows of its head)."""

    def joined(self, rows: TeacherRows) -> torch.Tensor | None:
        """Rows that must be in one chunk with the row before them, bool [N]; None: chunks may end anywhere."""
        return None


class FeatureLoss(Loss[Settings]):
    """A loss on the features that a Recorder captures inside the student."""

    learns: ClassVar[str | None] = None  # submodule it adds to the student, exempt from weight decay

    @abstractmethod
    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Prepare for this student, before it is wrapped for parallel training; returns what to record.

        Learned parameters are added to the student as the submodule ``learns``, so optimiser, checkpoints and resume
        include them. Raises UserError if student or cache lacks what is compared.
        """

    @abstractmethod
    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over its rows of the batch, a differentiable scalar."""

    def figures(self) -> dict[str, torch.Tensor]:
        """Scalars to log beside the loss, by name."""
        return {}

    def detach(self, student: "PreTrainedModel") -> None:
        """Remove the submodule ``learns`` from the student."""
        if self.learns is not None and hasattr(student, self.learns):
            delattr(student, self.learns)
