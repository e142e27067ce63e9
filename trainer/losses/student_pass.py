"""One forward pass of the student over a micro-batch, and its share of a step's loss.

A micro-batch's share is its sums divided by the step's row counts: shares add up to the loss over all rows of the step,
however these are cut into micro-batches and dealt to ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from teacher_cache.output_head import OutputHead
from trainer.losses.loss import Batch
from trainer.losses.objective import Objective, Term
from trainer.losses.teacher_rows import TeacherRows, teacher_rows
from trainer.losses.token_classes import TokenClasses
from trainer.losses.token_map import TokenMap
from trainer.student.forward import hidden_and_outputs
from trainer.student.router_balance import NAME, RouterBalance

RowCounts = Mapping[str, torch.Tensor | int]
"""Rows of each of ``Objective.rows`` in a step, over all its micro-batches and ranks; at least 1."""
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TeacherSide:
    """What the targets of a cache need beside its rows; as for ``teacher_rows``."""

    head: OutputHead | None = None
    token_maps: Sequence[TokenMap] = ()
    token_classes: Sequence[TokenClasses | None] = ()

    def rows(self, batch: Batch) -> TeacherRows:
        """The teacher's signals at the rows of a batch that count."""
        return teacher_rows(batch, self.head, self.token_maps, self.token_classes)


class StepShare(NamedTuple):
    """A micro-batch's share of the step's loss, a differentiable scalar, and its terms, which are not divided."""

    loss: torch.Tensor
    head_terms: list[Term]
    feature_terms: list[Term]

    @property
    def terms(self) -> list[Term]:
        """All terms."""
        return self.head_terms + self.feature_terms


class StudentPass(NamedTuple):
    """What a forward pass gave at the N rows that count, and the teacher's signals there."""

    hidden_ND: torch.Tensor  # final hidden states; or the logits [N, V], if ``head`` is None
    head: OutputHead | None
    rows: TeacherRows
    feature_terms: list[Term]

    def share(
        self, objective: Objective, counts: RowCounts, progress: float, autocast: Autocast = nullcontext
    ) -> StepShare:
        """Share of the step's loss at training ``progress`` in [0, 1]; autocast: around the head's product."""
        with autocast():
            head_loss, head_terms = objective.head_terms(self.hidden_ND, self.head, self.rows, progress)
        loss = head_loss / counts["loss_mask"]
        if not head_terms:  # DDP waits for a gradient of every parameter, the last layers included
            loss = loss + 0 * self.hidden_ND.sum()
            if self.head is not None:
                loss = loss + 0 * self.head.weight_VD.sum()
        for term in self.feature_terms:
            loss = loss + term.weight * term.total / counts[term.rows]
        return StepShare(loss, head_terms, self.feature_terms)


def student_pass(
    objective: Objective,
    model: torch.nn.Module,
    head: Callable[[], OutputHead],
    batch: dict[str, Any],
    teacher: TeacherSide,
    progress: float,
    router: RouterBalance | None = None,
) -> StudentPass:
    """Run the student over a micro-batch and record what the objective needs.

    model: the student, wrapped (DDP, FSDP) or not. head: gives its output head, asked after the forward pass, while
    FSDP keeps it gathered. batch: on the model's device, with the ``layout`` that the model takes.
    """
    with objective.recording() as recorded:
        options = {} if router is None else {"output_router_logits": True}
        hidden_ND, outputs = hidden_and_outputs(model, batch, **options)
    student_head = head()
    feature_terms = objective.feature_terms(recorded, batch, progress)
    if router is not None:
        feature_terms.append(Term(NAME, router.weight, router.total(outputs, batch), "attention_mask"))
    return StudentPass(hidden_ND, student_head, teacher.rows(batch), feature_terms)
