"""What a loss is to the trainer. Two kinds: on the student's logits, and on features inside the student.

A loss is made from its settings before the student is loaded. It gives *sums* over its rows: the trainer divides them
by the rows of the whole global batch.
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
"""From the logits [n, V] of a slice of the rows, float32 or float64, to the loss of each row [n] and the gradient of
their sum with respect to the logits, [n, V]. The logits may be overwritten, and the gradient will be."""


class Weighted(Protocol):
    """Settings of a loss."""

    @property
    def weight(self) -> WeightSchedule:
        """Its weight in the objective."""


Settings = TypeVar("Settings", bound=Weighted)


class Loss(ABC, Generic[Settings]):
    """One loss of the objective."""

    rows: ClassVar[str] = "loss_mask"  # what the sum is over: a mask of the batch, or a signal (where it is stored)
    signals: frozenset[Signal] = frozenset()  # what it reads of the cache, beside the tokens
    target: TargetForm | None = None  # for one that learns from the teacher's distributions: in which form

    def __init__(self, settings: Settings, capture: CaptureConfig) -> None:
        """``capture`` is the cache's. Raises UserError when it does not have what the settings ask for."""
        self.settings = settings
        self.capture = capture

    @abstractmethod
    def title(self) -> str:
        """What the model card calls it, in a few words of Markdown."""

    def note(self) -> str | None:
        """What is worth a line in the log before training starts."""
        return None


class HeadLoss(Loss[Settings]):
    """A loss on the student's logits at the rows that count, computed chunk by chunk (``lean``)."""

    @abstractmethod
    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """The loss against these rows of the teacher, for a student of ``vocabulary`` tokens."""


class FeatureLoss(Loss[Settings]):
    """A loss on what a Recorder sees inside the student."""

    learns: ClassVar[str | None] = None  # name of the submodule that it adds to the student: its weights do not decay

    @abstractmethod
    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Get ready for this student, before it is wrapped; returns what is to be recorded.

        A loss that learns something adds it to the student as the submodule ``learns``: optimiser, checkpoints and
        resume take it along. Raises UserError when student and cache do not have what is compared.
        """

    @abstractmethod
    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Its sum over its rows of the batch, a scalar with a gradient."""

    def figures(self) -> dict[str, torch.Tensor]:
        """Scalars that are logged beside the loss."""
        return {}

    def detach(self, student: "PreTrainedModel") -> None:
        """Take off the student what was added to it."""
        if self.learns is not None and hasattr(student, self.learns):
            delattr(student, self.learns)
