"""The training objective: a weighted sum of loss terms over the rows that count.

Terms are *sums* over rows. The caller divides by the number of rows of the whole global batch, which is what makes
gradient accumulation (and several ranks) equal one large batch: a mean of per-micro-batch means would give a token in
a short micro-batch more weight than one in a long micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas.errors import UserError
from schemas.train_config import LossConfig
from teacher_cache.signals.head import OutputHead
from trainer.losses.cross_entropy import cross_entropy_
from trainer.losses.lean import head_loss
from trainer.losses.schedule import always_zero, weight_at
from trainer.losses.targets import Target, top_k_target
from trainer.losses.tla import tla_

if TYPE_CHECKING:
    from trainer.recorder import Recorded
    from trainer.signals import StudentSignals


@dataclass(frozen=True)
class TeacherRows:
    """What the cache says about the N rows that count. K entries per row, T temperatures."""

    ids_NK: torch.Tensor  # integer
    logprobs_NK: torch.Tensor  # float, nats, temperature 1; -inf in the padding
    log_partition_NT: torch.Tensor  # float; logsumexp(logits / temperature)
    next_ids_N: torch.Tensor  # integer; the token that follows
    next_logprob_N: torch.Tensor  # float, nats; the teacher's log-probability of it


def teacher_rows(batch: dict[str, torch.Tensor]) -> TeacherRows:
    """The rows of ``batch`` (tensors of a RowBatch, [R, L, …]) where loss_mask holds, in row-major order.

    Row t is about token t+1 of the same sample: loss_mask is False at each sample's last token.
    """
    mask_RL = batch["loss_mask"]
    return TeacherRows(
        ids_NK=batch["ids"][mask_RL],
        logprobs_NK=batch["logprobs"][mask_RL],
        log_partition_NT=batch["log_partition"][mask_RL],
        next_ids_N=batch["input_ids"].roll(-1, dims=1)[mask_RL],
        next_logprob_N=batch["next_logprob"][mask_RL],
    )


@dataclass(frozen=True)
class Term:
    """One loss: its name, its weight now, and its sum over its rows (a scalar tensor, before the weight).

    ``rows`` names what the sum is over, a key of ``row_counts``.
    """

    name: str
    weight: float
    total: torch.Tensor
    rows: str = "loss_mask"


ROWS = ("loss_mask", "attention_mask", "hidden", "attention")


def row_counts(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """How many rows of each kind in ROWS a batch has, int64 [4]: what sums of terms are divided by."""
    masks = [batch["loss_mask"].sum(), batch["attention_mask"].sum()]
    stored = [len(batch[name]) if name in batch else 0 for name in ("hidden_column", "attention_column")]
    return torch.stack([*masks, *(masks[0].new_tensor(count) for count in stored)])


class Objective:
    """Computes the terms that the configuration asks for."""

    def __init__(self, losses: LossConfig, temperatures: Sequence[float]) -> None:
        """``temperatures`` are the cache's, in column order; UserError if the TLA temperature is not among them."""
        self.losses = losses
        self.signals: StudentSignals | None = None  # for lhsm, apc and asr: set when there is a student
        self.unit_column = list(temperatures).index(1.0)
        self.head_losses: list[str] = []
        if not always_zero(losses.tla.weight):
            self.head_losses.append("tla")
            if losses.tla.temperature not in temperatures:
                raise UserError(
                    f"losses.tla.temperature: {losses.tla.temperature} is not among the cache's temperatures "
                    f"{list(temperatures)}; choose one of them or make a cache with this one"
                )
            self.column = list(temperatures).index(losses.tla.temperature)
        if not always_zero(losses.cross_entropy.weight):
            self.head_losses.append("cross_entropy")

    def head_terms(
        self, hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows, progress: float
    ) -> tuple[torch.Tensor, list[Term]]:
        """The losses on what the student predicts, at training ``progress`` in [0, 1], from one pass over its head.

        hidden_ND: the student's final hidden states at the rows that count. Returns the terms' weighted sum, which
        gradients flow through, and the terms, whose totals are for reading only.
        """
        weights = [weight_at(getattr(self.losses, name).weight, progress) for name in self.head_losses]
        return self._head_pass(self.head_losses, weights, hidden_ND, head, rows)

    def head_terms_apart(
        self, hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows, progress: float
    ) -> list[Term]:
        """The same terms, each from a pass of its own, with totals that gradients flow through: for diagnosis."""
        terms = []
        for name in self.head_losses:
            total, _ = self._head_pass([name], [1.0], hidden_ND, head, rows)
            terms.append(Term(name, weight_at(getattr(self.losses, name).weight, progress), total))
        return terms

    def _head_pass(
        self, names: list[str], weights: list[float], hidden_ND: torch.Tensor, head: OutputHead, rows: TeacherRows
    ) -> tuple[torch.Tensor, list[Term]]:
        target = self._target(rows, len(head.weight_VD)) if "tla" in names else None

        def loss_of_rows(logits_nV: torch.Tensor, chunk: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
            totals, gradients = [], []
            for name, weight in zip(names, weights, strict=True):
                own_nV = logits_nV if name == names[-1] else logits_nV.clone()  # each overwrites what it is given
                if name == "tla":
                    assert target is not None
                    per_token_n, gradient_nV = tla_(own_nV, target.rows(chunk), self.losses.tla.temperature)
                else:
                    per_token_n, gradient_nV = cross_entropy_(own_nV, rows.next_ids_N[chunk])
                totals.append(per_token_n.sum())
                gradients.append(gradient_nV if weight == 1.0 else gradient_nV.mul_(weight))
            return totals, gradients[0] if len(gradients) == 1 else gradients[0].add_(gradients[1])

        if not names:  # nothing but losses on the student's inside
            return hidden_ND.new_zeros((), dtype=torch.float32), []
        loss, totals_L = head_loss(hidden_ND, head, weights, loss_of_rows)
        return loss, [Term(*parts) for parts in zip(names, weights, totals_L.unbind(), strict=True)]

    def _target(self, rows: TeacherRows, vocabulary: int) -> Target:
        return top_k_target(
            rows.ids_NK,
            rows.logprobs_NK,
            rows.log_partition_NT[:, self.unit_column],
            rows.log_partition_NT[:, self.column],
            self.losses.tla.temperature,
            vocabulary,
        )

    def signal_terms(self, recorded: "Recorded", batch: dict[str, torch.Tensor], progress: float) -> list[Term]:
        """The terms for what the student did inside, ``recorded`` in the same forward pass."""
        terms = []
        lhsm, apc, asr = self.losses.lhsm, self.losses.apc, self.losses.asr
        assert self.signals is not None
        if lhsm is not None:
            weight = weight_at(lhsm.weight, progress)
            terms.append(Term("lhsm", weight, self.signals.lhsm(recorded, batch), "hidden"))
        if apc is not None:
            weight = weight_at(apc.weight, progress)
            terms.append(Term("apc", weight, self.signals.apc(recorded, batch), "attention"))
        if asr is not None:
            weight = weight_at(asr.weight, progress)
            terms.append(Term("asr", weight, self.signals.asr(recorded, batch), "attention_mask"))
        return terms
