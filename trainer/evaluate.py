"""Measure a student over the samples of a cache: KL to the teacher, perplexity, agreement, calibration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from teacher_cache.model_folder import local_folder
from teacher_cache.output_head import OutputHead
from teacher_cache.trust.required import NOTHING, Required
from trainer.data.batches import evaluation_loader
from trainer.data.open_caches import check_vocabulary
from trainer.data.readable import Readable
from trainer.data.selection import Selection, Subset
from trainer.data.validation_data import open_for_evaluation, sorted_rows
from trainer.data.worker_transfer import Batch
from trainer.losses.head_chunks import chunk_rows
from trainer.losses.target_form import dense_target, stored_target
from trainer.losses.targets import Target
from trainer.losses.teacher_rows import TeacherRows, teacher_rows
from trainer.losses.tla import tla_
from trainer.student.build import load_model
from trainer.student.forward import check_head, flattens, masked_hidden, output_head
from trainer.student.preflight import check_positions
from trainer.student.student_tokenizer import EVALUATED, check_tokenizer
from trainer.student.token_layout import token_layout

CONFIDENCE_BINS = 15
SUMS = ("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy")


@dataclass(frozen=True)
class Validation:
    """The validation data of a run."""

    batches: DataLoader[Any]
    capture: CaptureConfig  # of its cache; precision may differ from the training cache's
    teacher_head: OutputHead | None  # of a cache with final hidden states


def evaluate(
    model: Any,
    batches: Iterable[Batch],
    capture: CaptureConfig,
    teacher_head: OutputHead | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    device: torch.device | None = None,
    passes: int = 0,
    head_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Return means over the positions in the loss mask. Runs without gradients and restores the model's mode.

    capture: the cache's. teacher_head: of a cache with final hidden states. reduce: sums a float64 tensor over ranks,
    each of which has its own batches. device: where the model runs, if its weights are elsewhere (off-load). passes:
    forward passes of every rank, since a sharded model's are collective; a rank with fewer batches adds dummy passes.
    head_dtype: of the student's head's matrix product; default: its weight's.

    Keys: ``kl`` (teacher ‖ student at temperature 1, nats: exact with a teacher head, else a lower bound with one
    bucket for all other tokens), ``cross_entropy`` (nats), ``perplexity``, ``top1_agreement`` (share of rows where the
    student's best token is the teacher's), ``calibration_error`` (see ``_Calibration``), ``teacher_cross_entropy``,
    ``tokens``. Raises UserError if the loss mask is False everywhere.
    """
    device = device or next(model.parameters()).device
    totals = torch.zeros(len(SUMS), dtype=torch.float64)
    calibration = _Calibration()
    tokens = done = 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for cpu_batch in batches:
            laid_out: dict[str, Any] = {**cpu_batch, "layout": token_layout(cpu_batch, flattens(model))}
            batch = {name: part.to(device) for name, part in laid_out.items()}
            rows = teacher_rows(batch, teacher_head)
            hidden_ND = masked_hidden(model, batch)
            head = output_head(model)
            head = head if head_dtype is None else head._replace(weight_VD=head.weight_VD.to(head_dtype))
            target: Target
            if teacher_head is None:
                target = stored_target(rows, capture, 1.0, len(head.weight_VD))
            else:
                target = dense_target(rows, capture, 1.0)
            for chunk in chunk_rows(head, len(hidden_ND)):
                totals += _sums(head.logits(hidden_ND[chunk]), rows, target, chunk, calibration)
            tokens += len(hidden_ND)
            done += 1
            if on_batch is not None:
                on_batch(cpu_batch)
        for _ in range(done, passes):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    model.train(was_training)
    totals = reduce(torch.cat([totals, totals.new_tensor([tokens])]))
    totals, tokens = totals[:-1], int(totals[-1])
    calibration.sums = reduce(calibration.sums)
    if tokens == 0:
        raise UserError("nothing to evaluate: loss_mask is False at every token of these samples")
    means: dict[str, Any] = dict(zip(SUMS, (totals / tokens).tolist(), strict=True))
    means["perplexity"] = float(torch.tensor(means["cross_entropy"], dtype=torch.float64).exp())
    means["calibration_error"] = calibration.error()
    means["tokens"] = tokens
    return means


def _sums(
    logits_nV: torch.Tensor, rows: TeacherRows, target: Target, chunk: slice, calibration: "_Calibration"
) -> torch.Tensor:
    """Return the sums of SUMS over a chunk of rows, float64 on the CPU."""
    next_ids_n = rows.next_ids_N[chunk].long()
    best_n = logits_nV.argmax(dim=-1)
    log_z_n = torch.logsumexp(logits_nV, dim=-1)
    cross_entropy_n = log_z_n - logits_nV.gather(1, next_ids_n[:, None]).squeeze(1)
    calibration.add((logits_nV.amax(dim=-1) - log_z_n).exp(), best_n == next_ids_n)
    agrees_n = best_n == rows.ids_NK[chunk, 0]
    kl_n, _ = tla_(logits_nV, target.rows(chunk), temperature=1.0)
    per_token = (kl_n, cross_entropy_n, agrees_n, -rows.next_logprob_N[chunk])
    return torch.stack([values_n.sum(dtype=torch.float64) for values_n in per_token]).cpu()


class _Calibration:
    """Expected calibration error of the student's best token (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Rows are binned by the best token's probability, in equal widths. The error is Σ over bins of (bin's share of rows)
    · |mean probability − accuracy|, accuracy against the realised next token.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(CONFIDENCE_BINS, 3, dtype=torch.float64)  # confidence, right, rows

    def add(self, confidence_n: torch.Tensor, right_n: torch.Tensor) -> None:
        bins_n = (confidence_n * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1).cpu()
        rows_n3 = torch.stack([confidence_n, right_n.float(), torch.ones_like(confidence_n)], dim=1)
        self.sums.index_add_(0, bins_n, rows_n3.double().cpu())

    def error(self) -> float:
        return float((self.sums[:, 0] - self.sums[:, 1]).abs().sum() / self.sums[:, 2].sum())


def head_on(device: torch.device, cache: Readable) -> OutputHead | None:
    """Read the teacher's output head to a device; None if the cache has none."""
    return None if cache.manifest.capture.final is None else cache.read_head().to(device)


def evaluate_folder(
    model_folder: str,
    cache_url: str,
    validation_fraction: float = 0.0,
    limit: int | None = None,
    batch_size: int = 4,
    dtype: str = "float32",
    advance: Callable[[int, int], None] | None = None,
    required: Required = NOTHING,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Run ``evaluate`` for a model folder over a cache, or over the samples that ``validation_fraction`` holds out.

    limit: at most this many samples, in the cache's order. advance: progress callback, (samples done, samples).
    required: digest and signatures that the cache must have. trust_remote_code: run code that ships with the model.
    Adds ``samples``, ``parameters`` and ``kl_is_exact`` to the result. Raises UserError.
    """
    cache = open_for_evaluation(cache_url, required=required)
    held_out = Selection(validation_fraction=validation_fraction, held_out=validation_fraction > 0)
    rows = sorted_rows(Subset(cache, held_out), limit)
    if not len(rows):
        raise UserError(f"{cache_url}: --validation-fraction {validation_fraction} holds out no sample; raise it")
    folder = local_folder(model_folder, EVALUATED)
    check_tokenizer(cache.manifest, folder, cache_url, EVALUATED, trust_remote_code)
    model: Any = load_model(folder, EVALUATED, getattr(torch, dtype), trust_remote_code=trust_remote_code)
    check_vocabulary(cache.manifest, model.config, where=cache_url)
    check_positions(model.config, rows.longest, cache_url, EVALUATED)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    check_head(model)
    done = 0

    def on_batch(batch: Batch) -> None:
        nonlocal done
        done += len(batch["input_ids"])
        if advance is not None:
            advance(done, len(rows))

    loader = evaluation_loader(cache, rows, batch_size)
    head = head_on(model.device, cache)
    measured = evaluate(model, loader, cache.manifest.capture, head, on_batch)
    cache.close()
    exact = {"kl_is_exact": head is not None}
    return {**measured, **exact, "samples": len(rows), "parameters": model.num_parameters()}
