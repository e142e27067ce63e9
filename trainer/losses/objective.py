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
from trainer.losses.cross_entropy import cross_entropy_per_token
from trainer.losses.schedule import always_zero, weight_at
from trainer.losses.tla import tla_per_token

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
        self.uses_tla = not always_zero(losses.tla.weight)
        self.uses_cross_entropy = not always_zero(losses.cross_entropy.weight)
        if self.uses_tla:
            if losses.tla.temperature not in temperatures:
                raise UserError(
                    f"losses.tla.temperature: {losses.tla.temperature} is not among the cache's temperatures "
                    f"{list(temperatures)}; choose one of them or make a cache with this one"
                )
            self.column = list(temperatures).index(losses.tla.temperature)

    def terms(self, logits_NV: torch.Tensor, rows: TeacherRows, progress: float) -> list[Term]:
        """The terms for the student's ``logits_NV`` at training ``progress`` in [0, 1]."""
        terms = []
        if self.uses_tla:
            per_token_N = tla_per_token(
                logits_NV,
                rows.ids_NK,
                rows.logprobs_NK,
                rows.log_partition_NT[:, self.unit_column],
                rows.log_partition_NT[:, self.column],
                self.losses.tla.temperature,
            )
            terms.append(Term("tla", weight_at(self.losses.tla.weight, progress), per_token_N.sum()))
        if self.uses_cross_entropy:
            per_token_N = cross_entropy_per_token(logits_NV, rows.next_ids_N)
            weight = weight_at(self.losses.cross_entropy.weight, progress)
            terms.append(Term("cross_entropy", weight, per_token_N.sum()))
        return terms

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
