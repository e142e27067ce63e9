"""A loss over classes of student tokens, and the text's token within its class.

Where a student token is longer than the common token of its class, the teacher's row says how likely the class is, and
the text which of its tokens was written. So a row's loss is a divergence over classes and, as the chain rule of
probability has it, the cross-entropy of the next token within its class. For texts that the teacher writes, its
gradient is on average that of the distribution over the student's tokens, which no row alone holds.

Shape letters: N rows, n of a chunk, m of these in classes, V student vocabulary.
"""

import torch

from trainer.losses.loss import LossOfChunk, Pair
from trainer.losses.teacher_rows import TeacherRows
from trainer.losses.token_classes import TokenClasses

NO_CLASS = -1e30  # logit where a class has no place; finite, so that 0 times it is 0


def in_classes(loss: LossOfChunk, rows: TeacherRows, temperature: float) -> LossOfChunk:
    """``loss`` over classes where ``rows`` are in classes, plus the cross-entropy within the class.

    ``loss`` is given the logits of classes at ``temperature``, at the columns of the common tokens. The cross-entropy,
    at temperature 1, is added where the row has a teacher. Rows that are in no classes are left as they are.
    """
    number_N = rows.classes_N
    if number_N is None:
        return loss

    def of_chunk(logits_nV: torch.Tensor, chunk: slice) -> Pair:
        parts = []
        for number, classes in enumerate(rows.token_classes, start=1):
            own_n = (number_N[chunk] == number).nonzero().squeeze(1).to(logits_nV.device)
            if classes is None or len(own_n) == 0:
                continue
            is_all = len(own_n) == len(logits_nV)
            own = slice(None) if is_all else own_n
            has_teacher_m = rows.logprobs_NK[chunk, 0][own] > -torch.inf
            part = _Part(classes, logits_nV[own], rows.next_ids_N[chunk][own], has_teacher_m, temperature)
            if is_all:
                logits_nV = part.logits_mV
            else:
                logits_nV[own] = part.logits_mV
            parts.append((own, part))
        loss_n, gradient_nV = loss(logits_nV, chunk)
        for own, part in parts:
            loss_n[own] += part.within_m
            gradient_nV[own] = part.gradient(gradient_nV[own])
        return loss_n, gradient_nV

    return of_chunk


class _Part:
    """Rows in classes: the logits of the classes, the loss within them, and the gradient through both."""

    def __init__(
        self,
        classes: TokenClasses,
        logits_mV: torch.Tensor,
        next_ids_m: torch.Tensor,
        has_teacher_m: torch.Tensor,
        temperature: float,
    ) -> None:
        """``logits_mV`` are kept, and overwritten."""
        self._classes, self._has_teacher_m1 = classes, has_teacher_m[:, None].to(logits_mV.dtype)
        self._next_m1 = next_ids_m.long()[:, None]
        self._class_m1 = classes.of_V[self._next_m1]
        logit_m1 = logits_mV.gather(1, self._next_m1)
        at_one = None if temperature == 1 else self._merge(logits_mV.clone())
        log_sums_mV, self._shares_mV = self._merge(logits_mV.div_(temperature))
        log_sum_m1 = (log_sums_mV if at_one is None else at_one[0]).gather(1, self._class_m1)
        self._shares_at_one_mV = None if at_one is None else at_one[1]
        self.within_m = ((log_sum_m1 - logit_m1) * self._has_teacher_m1).squeeze(1)
        self.logits_mV = log_sums_mV.mul_(temperature).masked_fill_(classes.unnamed_V, NO_CLASS)

    def _merge(self, z_mV: torch.Tensor) -> Pair:
        """log Σ exp(z) of each class at its common token, and each token's share in its class; overwrites ``z_mV``."""
        most_m1 = z_mV.amax(dim=1, keepdim=True)
        exp_mV = z_mV.sub_(most_m1).exp_()
        of_mV = self._classes.of_V.expand_as(exp_mV)
        sums_mV = torch.zeros_like(exp_mV).scatter_add_(1, of_mV, exp_mV).clamp_(min=torch.finfo(exp_mV.dtype).tiny)
        shares_mV = exp_mV.div_(sums_mV.gather(1, of_mV))
        return sums_mV.log_().add_(most_m1), shares_mV

    def gradient(self, by_class_mV: torch.Tensor) -> torch.Tensor:
        """With respect to the rows' logits, of the loss with this gradient by class and of the one within."""
        if self._shares_at_one_mV is None:
            by_class_mV.scatter_add_(1, self._class_m1, self._has_teacher_m1)
        gradient_mV = by_class_mV.gather(1, self._classes.of_V.expand_as(by_class_mV)).mul_(self._shares_mV)
        if self._shares_at_one_mV is not None:
            gradient_mV += self._shares_at_one_mV * (self._classes.of_V == self._class_m1) * self._has_teacher_m1
        return gradient_mV.scatter_add_(1, self._next_m1, -self._has_teacher_m1)
