"""The losses of a configuration for anyone's training loop: hidden states and head, or logits, in; terms out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.model_folder import local_folder
from teacher_cache.output_head import OutputHead
from trainer.api.cache_dataset import CacheDataset, StepBatch
from trainer.api.step_batches import rank_and_world, sum_over_ranks
from trainer.data.alignment import check_first_samples
from trainer.data.open_caches import check_vocabulary
from trainer.data.validation_data import open_validation
from trainer.evaluate import Validation, validation_on
from trainer.losses.objective import Objective
from trainer.losses.student_pass import Autocast, RowCounts, StepShare, StudentPass, TeacherSide, student_pass
from trainer.student.forward import check_head, check_packing, flattens, output_head
from trainer.student.recorder import Recorded
from trainer.student.router_balance import RouterBalance, router_balance
from trainer.student.student_tokenizer import other_fingerprint
from trainer.student.token_layout import token_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StepTerms:
    """A micro-batch's share of a step's loss; shares of all micro-batches and ranks add up to the step's."""

    total: torch.Tensor
    """Weighted sum, a differentiable scalar, times the number of ranks, since DDP and FSDP average gradients over
    them. Call ``backward`` on it as it is: do not divide by the number of micro-batches."""
    terms: dict[str, torch.Tensor]
    """By name: unweighted, detached scalars."""
    weights: dict[str, float]
    """By name: weights at this point of training."""


class DistillationLoss:
    """The losses of a CacheDataset for one student.

    ``loss(student, batch)`` runs the student itself and never makes all logits: the fast way. For a forward pass of
    one's own there are ``from_hidden`` and ``from_logits``. Only the first two can serve losses on hidden states,
    attention and FFNs (``lhsm``, ``apc``, ``asr``).
    """

    def __init__(self, dataset: CacheDataset, student: "PreTrainedModel | None" = None) -> None:
        """Prepare the losses. Make the optimiser afterwards: ``lhsm`` adds its learned maps to the student.

        student: before it is wrapped (DDP, FSDP), on its device; None: there are logits only. Raises UserError
        if student and cache do not fit together.
        """
        self.dataset = dataset
        self.objective = Objective(dataset.losses, dataset.capture)
        self.teacher = TeacherSide(dataset.rows.cache.read_head() if "final" in dataset.signals else None)
        check_first_samples(dataset.caches, dataset.rows.plan, dataset.rows_consumed, self.teacher.head)
        self.student = student
        self.flatten = False
        self.router: RouterBalance | None = None
        self._validations: dict[tuple[torch.device, int], Validation] = {}  # by device and batch size
        if student is not None:
            self._attach(student)
        elif self.objective.feature_losses:
            raise UserError(
                f"DistillationLoss: losses.{', losses.'.join(self.objective.feature_losses)} read features inside the "
                "student: give it as the second argument"
            )

    def _attach(self, student: "PreTrainedModel") -> None:
        manifest, where = self.dataset.manifest, self.dataset.data.shares[0].url
        check_vocabulary(manifest, student.config, where=where)
        other = other_tokenizer(manifest, student.name_or_path)
        if other is not None:
            raise UserError(
                f"{student.name_or_path}: the student's tokenizer {other[:12]}… is not the one the cache {where} was "
                f"made with, {manifest.tokenizer.fingerprint[:12]}…; train-student teaches such students (data.align)"
            )
        check_head(student)
        self.flatten = flattens(student)
        if self.dataset.data.packing:
            check_packing(student, self.flatten)
        self.objective.attach(student, manifest, self.dataset.seed)
        self.router = router_balance(student)

    def detach(self) -> None:
        """Remove recorders and learned maps from the student, before it is saved for use."""
        if self.student is not None:
            self.objective.detach(self.student)

    def __call__(self, student: torch.nn.Module, batch: StepBatch) -> StepTerms:
        """Run the student, wrapped or not, over a batch, which is moved to its device, and return its terms.

        Raises UserError unless the batch has ``step_rows``.
        """
        return self._terms(self.share(student, batch, _counts(batch), self.progress(batch)), _counts(batch))

    def share(
        self,
        student: torch.nn.Module,
        batch: Mapping[str, Any],
        counts: RowCounts,
        progress: float,
        autocast: Autocast = nullcontext,
    ) -> StepShare:
        """The batch's share of a step with these row counts, at training ``progress`` in [0, 1].

        batch: with a ``layout`` it is on the right device already.
        """
        if self.student is None:
            raise UserError("DistillationLoss: made without a student; give it as the second argument")
        self._check_maps()
        own, given = self.student, dict(batch)
        if "layout" not in given:
            given = moved_to(own.device, {**given, "layout": token_layout(given, self.flatten)})
        teacher = self._teacher(given["input_ids"].device)
        seen = student_pass(self.objective, student, lambda: output_head(own), given, teacher, progress, self.router)
        return seen.share(self.objective, counts, progress, autocast)

    def recording(self) -> AbstractContextManager[Recorded | None]:
        """Context in which one's own forward pass is recorded for ``from_hidden``."""
        return self.objective.recording()

    def from_hidden(
        self,
        hidden: torch.Tensor,
        head: torch.nn.Linear | OutputHead,
        batch: StepBatch,
        recorded: Recorded | None = None,
    ) -> StepTerms:
        """Terms from final hidden states, after the last norm: [R, L, D] of the whole batch.

        head: the student's output head, on their device; ``output_head(student)`` of ``trainer.student.forward`` knows
        soft caps and scales. recorded: of ``recording``, for losses on features. Raises UserError if it is missing.
        """
        if self.objective.feature_losses and recorded is None:
            raise UserError(f"DistillationLoss: recorded: needed for {', '.join(self.objective.feature_losses)}")
        if isinstance(head, torch.nn.Linear):
            head = OutputHead(head.weight, head.bias)
        return self._from_rows(hidden, head, batch, recorded)

    def from_logits(self, logits: torch.Tensor, batch: StepBatch) -> StepTerms:
        """Terms from all logits, [R, L, V]: simple, and takes the most memory. Not for losses on features."""
        if self.objective.feature_losses:
            names = ", ".join(self.objective.feature_losses)
            raise UserError(f"DistillationLoss.from_logits: logits are not enough for {names}; use from_hidden")
        return self._from_rows(logits, None, batch, None)

    def _from_rows(
        self, values_RLC: torch.Tensor, head: OutputHead | None, batch: StepBatch, recorded: Recorded | None
    ) -> StepTerms:
        self._check_maps()
        moved = moved_to(values_RLC.device, batch)
        if values_RLC.shape[:2] != moved["loss_mask"].shape:
            raise UserError(
                f"DistillationLoss: hidden states or logits of shape {tuple(values_RLC.shape)}, wanted "
                f"[{', '.join(map(str, moved['loss_mask'].shape))}, …], one for each token of the batch"
            )
        progress, rows = self.progress(batch), self._teacher(values_RLC.device).rows(moved)
        features = self.objective.feature_terms(recorded, moved, progress)
        seen = StudentPass(values_RLC[moved["loss_mask"]], head, rows, features)
        return self._terms(seen.share(self.objective, _counts(batch), progress), _counts(batch))

    def validate(self, student: torch.nn.Module, batch_size: int = 4) -> dict[str, float]:
        """A student's figures over the samples that the data set holds out, those of ``Measures``: ``kl``, …

        They are those of ``validation_fraction``, or of ``validation_cache``. Ranks of ``torch.distributed`` share the
        samples, and all get the figures. Without gradients; the student's mode is restored. Raises UserError if nothing
        is held out.
        """
        device = next(student.parameters()).device
        if (device, batch_size) not in self._validations:
            self._validations[device, batch_size] = self._open_validation(device, batch_size)
        model = student.module if isinstance(student, DistributedDataParallel) else student
        return self._validations[device, batch_size].measure(model, lambda sums: sum_over_ranks(sums, device))

    def _open_validation(self, device: torch.device, batch_size: int) -> Validation:
        data = self.dataset.data
        held_out = open_validation(data, self.dataset.manifest)
        if held_out is None:
            raise UserError(
                "DistillationLoss.validate: nothing is held out; give the CacheDataset validation_fraction=0.05, say, "
                "or validation_cache"
            )
        head = self._teacher(device).head
        return validation_on(held_out, data, self.dataset.manifest, head, device, batch_size, *rank_and_world())

    def inputs(self, batch: StepBatch) -> dict[str, Any]:
        """Arguments of a forward pass of one's own; padding is on the right and needs no mask.

        Packed samples are kept apart by ``position_ids``, from which transformers makes its mask if there is no cache.
        """
        return {name: batch[name] for name in ("input_ids", "position_ids") if name in batch} | {"use_cache": False}

    def progress(self, batch: StepBatch) -> float:
        """Share of the training steps done before this batch's step, in [0, 1): what schedules of weights follow."""
        return float(batch["step"] / self.dataset.steps)

    def _check_maps(self) -> None:
        """Raise UserError if the student's learned maps are frozen: ``peft`` freezes all that is there before it."""
        maps = [getattr(self.student, name) for name in self.objective.learned]
        if not all(weight.requires_grad for each in maps for weight in each.parameters()):
            raise UserError(
                f"DistillationLoss: the maps that {self.objective.learners} learn are frozen; make the loss of the "
                "student that has its adapter already"
            )

    def _teacher(self, device: torch.device) -> TeacherSide:
        if self.teacher.head is not None and self.teacher.head.weight_VD.device != device:
            self.teacher = TeacherSide(self.teacher.head.to(device))
        return self.teacher

    def _terms(self, share: StepShare, counts: RowCounts) -> StepTerms:
        return StepTerms(
            share.loss * rank_and_world()[1],
            {term.name: (term.total / counts[term.rows]).detach() for term in share.terms},
            {term.name: term.weight for term in share.terms},
        )


def other_tokenizer(manifest: Manifest, name: str | None) -> str | None:
    """Fingerprint of the tokenizer of a model, by folder or hub name, if it is not the cache's; None if it is.

    Also None if the model was not loaded from this machine, or its tokenizer has code of its own.
    """
    if not name:
        return None
    with suppress(UserError):
        return other_fingerprint(manifest, local_folder(name, "student"), "student", trust_remote_code=False)
    return None


def moved_to(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def _counts(batch: StepBatch) -> RowCounts:
    if "step_rows" not in batch:
        raise UserError("DistillationLoss: the batch has no step_rows; take batches of a CacheDataset as they are")
    counts: RowCounts = batch["step_rows"]
    return counts
