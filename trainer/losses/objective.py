"""The training objective: a weighted sum of loss terms over the rows that count.

Terms are *sums* over rows. The caller divides by the number of rows of the whole global batch, which is what makes
gradient accumulation (and several ranks) equal one large batch: a mean of per-micro-batch means would give a token in
a short micro-batch more weight than one in a long micro-batch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from schemas.cache_config import CaptureConfig
from schemas.train_config import LossConfig, Tail, TargetForm
from teacher_cache.output_head import OutputHead
from teacher_cache.signals.hidden.capture import dequantise
from trainer.losses.cross_entropy import cross_entropy_
from trainer.losses.lean import head_loss
from trainer.losses.schedule import always_zero, weight_at
from trainer.losses.target_form import target_form
from trainer.losses.targets import DenseTarget, ListedTarget, Target, draws_target, top_k_target
from trainer.losses.tla import tla_

if TYPE_CHECKING:
    from trainer.losses.student_signals import StudentSignals
    from trainer.student.recorder import Recorded


@dataclass(frozen=True)
class TeacherRows:
    """What the cache says about the N rows that count. K entries per row, T temperatures, M draws, D channels.

    K and T are 0 when the logits signal is not read.
    """

    ids_NK: torch.Tensor  # integer
    logprobs_NK: torch.Tensor  # float, nats, temperature 1; -inf in the padding
    log_partition_NT: torch.Tensor  # float, nats; log Σ_v p(v)^(1/temperature)
    next_ids_N: torch.Tensor  # integer; the token that follows
    next_logprob_N: torch.Tensor  # float, nats; the teacher's log-probability of it
    draws_NTM: torch.Tensor | None = None  # integer
    entropy_NT: torch.Tensor | None = None  # float, nats; at the temperatures of the draws
    final: tuple[torch.Tensor, ...] | None = None  # final hidden states [N, 1, …], as ``dequantise`` takes them


def teacher_rows(batch: dict[str, torch.Tensor]) -> TeacherRows:
    """The rows of ``batch`` (tensors of a RowBatch, [R, L, …]) where loss_mask holds, in row-major order.

    Row t is about token t+1 of the same sample: loss_mask is False at each sample's last token.
    """
    mask_RL = batch["loss_mask"]

    def counting(signal: str, *names: str) -> list[torch.Tensor]:
        """Of a signal that is stored row by row, the rows that count."""
        keep_N = mask_RL[batch[f"{signal}_batch_row"], batch[f"{signal}_column"]]
        return [batch[f"{signal}_{name}"][keep_N] for name in names]

    draws_NTM, entropy_NT = counting("draws", "ids", "entropy") if "draws_ids" in batch else (None, None)
    final = counting("final", "values", "scales", "outlier_index", "outliers") if "final_values" in batch else None
    return TeacherRows(
        ids_NK=batch["ids"][mask_RL],
        logprobs_NK=batch["logprobs"][mask_RL],
        log_partition_NT=batch["log_partition"][mask_RL],
        next_ids_N=batch["input_ids"].roll(-1, dims=1)[mask_RL],
        next_logprob_N=batch["next_logprob"][mask_RL],
        draws_NTM=draws_NTM,
        entropy_NT=entropy_NT,
        final=None if final is None else tuple(final),
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


TERMS = ("tla", "cross_entropy", "lhsm", "apc", "asr")  # in the order they are logged
ROWS = ("loss_mask", "attention_mask", "hidden", "attention")


def row_counts(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """How many rows of each kind in ROWS a batch has, int64 [4]: what sums of terms are divided by."""
    masks = [batch["loss_mask"].sum(), batch["attention_mask"].sum()]
    stored = [len(batch[name]) if name in batch else 0 for name in ("hidden_column", "attention_column")]
    return torch.stack([*masks, *(masks[0].new_tensor(count) for count in stored)])


def stored_target(
    rows: TeacherRows, capture: CaptureConfig, temperature: float, vocabulary: int, tail: Tail = "bucket"
) -> ListedTarget:
    """The target that the stored entries of the rows make."""
    column = capture.logits.temperatures.index(temperature)
    return top_k_target(
        rows.ids_NK,
        rows.logprobs_NK,
        rows.log_partition_NT[:, column],
        temperature,
        vocabulary,
        tail,
    )


def dense_target(rows: TeacherRows, capture: CaptureConfig, head: OutputHead, temperature: float) -> DenseTarget:
    """The target that the final hidden states of the rows make."""
    assert rows.final is not None
    assert capture.final is not None
    values, scales, outlier_index, outliers = rows.final
    return DenseTarget(dequantise(values, scales, outlier_index, outliers, capture.final)[:, 0], head, temperature)


class Objective:
    """Computes the terms that the configuration asks for."""

    def __init__(self, losses: LossConfig, capture: CaptureConfig) -> None:
        """``capture`` is the cache's; UserError if it has no target as the losses ask for."""
        self.losses = losses
        self.capture = capture
        self.signals: StudentSignals | None = None  # for lhsm, apc and asr: set when there is a student
        self.teacher_head: OutputHead | None = None  # for final: set when there is a device
        self.head_losses: list[str] = []
        self.form: TargetForm | None = None  # of the target of TLA
        if not always_zero(losses.tla.weight):
            self.head_losses.append("tla")
            self.form = target_form(losses.tla, capture)
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
                    tla = self.losses.tla
                    per_token_n, gradient_nV = tla_(
                        own_nV, target.rows(chunk), tla.temperature, tla.divergence, tla.jsd_beta
                    )
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
        tla, draws = self.losses.tla, self.capture.draws
        if self.form == "final":
            assert self.teacher_head is not None
            return dense_target(rows, self.capture, self.teacher_head, tla.temperature)
        if self.form == "top_k":
            return stored_target(rows, self.capture, tla.temperature, vocabulary, tla.tail)
        assert draws is not None
        assert rows.draws_NTM is not None
        assert rows.entropy_NT is not None
        head = None
        if draws.region == "tail":
            head = stored_target(rows, self.capture, tla.temperature, vocabulary)
        column = draws.temperatures.index(tla.temperature)
        return draws_target(head, rows.draws_NTM[:, column], rows.entropy_NT[:, column], vocabulary)

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
