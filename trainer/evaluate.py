"""Measure a student over the samples of a cache: KL to the teacher, perplexity, bits per byte, agreement, …"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import DataConfig
from teacher_cache.lengths import max_length
from teacher_cache.model_folder import local_folder
from teacher_cache.output_head import OutputHead
from teacher_cache.retarget.row_targets import Align
from teacher_cache.trust.required import NOTHING, Required
from trainer.data.batches import evaluation_loader
from trainer.data.open_caches import check_vocabulary
from trainer.data.readable import Cache, Readable
from trainer.data.row_plan import SortedRows
from trainer.data.selection import Selection, Subset
from trainer.data.student_side import student_side
from trainer.data.validation_data import ValidationData, evaluation_rows, open_for_evaluation, sorted_rows
from trainer.data.worker_transfer import Batch
from trainer.losses.head_chunks import chunk_rows
from trainer.losses.target_form import final_target, stored_target
from trainer.losses.targets import Target
from trainer.losses.teacher_rows import teacher_rows
from trainer.losses.token_map import TokenMap
from trainer.measures import Measures
from trainer.sample_sums import SampleSums
from trainer.student.build import load_model, load_model_config
from trainer.student.forward import check_head, flattens, masked_hidden, output_head
from trainer.student.preflight import check_positions
from trainer.student.student_tokenizer import EVALUATED, check_tokenizer
from trainer.student.token_bytes import cache_token_bytes
from trainer.student.token_layout import token_layout

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a float64 tensor over ranks."""


@dataclass(frozen=True)
class Validation:
    """The validation data of a run."""

    batches: DataLoader[Any]
    capture: CaptureConfig  # of its cache; precision may differ from the training cache's
    teacher_head: OutputHead | None  # of a cache with final hidden states
    token_bytes: torch.Tensor | None = None  # int64 [V]; bytes of each of the student's tokens
    ranks: int = 1  # to which the rows are dealt in turn

    def measure(
        self,
        model: Any,
        reduce: Reduce,
        device: torch.device | None = None,
        head_dtype: torch.dtype | None = None,
    ) -> dict[str, float]:
        """``evaluate`` on this data; every rank does as many forward passes as the one with most rows."""
        rows: Any = self.batches.dataset
        assert self.batches.batch_size is not None
        passes = math.ceil(math.ceil(len(rows) / self.ranks) / self.batches.batch_size)
        return evaluate(
            model,
            self.batches,
            self.capture,
            self.teacher_head,
            reduce=reduce,
            device=device,
            passes=passes,
            head_dtype=head_dtype,
            token_bytes=self.token_bytes,
        )


def validation_on(
    held_out: ValidationData,
    data: DataConfig,
    training: Manifest,
    teacher_head: OutputHead | None,
    device: torch.device,
    batch_rows: int,
    rank: int = 0,
    ranks: int = 1,
    folder: Path | None = None,
    trust_remote_code: bool = False,
    skip_corrupt: bool = False,
) -> Validation:
    """A rank's share of the held-out samples, for a run on caches of ``training``.

    teacher_head: read for the training; it serves here, too, if these samples have the same. device: for one that has
    to be read. folder: of the student, as in ``cache_token_bytes``.
    """
    manifest = held_out.cache.manifest
    shared = teacher_head is not None and manifest.capture.final is not None and manifest.head == training.head
    if not shared:
        teacher_head = head_on(device, held_out.cache)
    batches = evaluation_loader(held_out.cache, held_out.rows, batch_rows, rank, ranks, skip_corrupt)
    url = data.validation_cache or data.shares[0].url
    token_bytes = cache_token_bytes(url, manifest, folder, trust_remote_code=trust_remote_code)
    return Validation(batches, manifest.capture, teacher_head, token_bytes, ranks)


def evaluate(
    model: Any,
    batches: Iterable[Batch],
    capture: CaptureConfig,
    teacher_head: OutputHead | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    reduce: Reduce = lambda values: values,
    device: torch.device | None = None,
    passes: int = 0,
    head_dtype: torch.dtype | None = None,
    token_bytes: torch.Tensor | None = None,
    token_maps: Sequence[TokenMap] = (),
    by_sample: SampleSums | None = None,
) -> dict[str, float]:
    """Return means over the positions in the loss mask. Runs without gradients and restores the model's mode.

    capture: the cache's. teacher_head: of a cache with final hidden states. reduce: sums a float64 tensor over ranks,
    each of which has its own batches. device: where the model runs, if its weights are elsewhere (off-load). passes:
    forward passes of every rank, since a sharded model's are collective; a rank with fewer batches adds dummy passes.
    head_dtype: of the student's head's matrix product; default: its weight's. token_bytes: of each of the student's
    tokens, int64 [V]; tokens beyond it have none. token_maps: as in ``teacher_rows``. by_sample: gets the sums of each
    sample, on one rank; every row of the batches is then one sample.

    The keys are those of ``Measures``. Raises UserError if the loss mask is False everywhere, or no row in it has a
    distribution of the teacher.
    """
    device = device or next(model.parameters()).device
    measures = Measures(None if token_bytes is None else token_bytes.to(device), by_sample)
    done = 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for cpu_batch in batches:
            laid_out: dict[str, Any] = {**cpu_batch, "layout": token_layout(cpu_batch, flattens(model))}
            batch = {name: part.to(device) for name, part in laid_out.items()}
            rows = teacher_rows(batch, teacher_head, token_maps)
            if by_sample is not None:
                by_sample.begin(batch["loss_mask"])
            hidden_ND = masked_hidden(model, batch)
            head = output_head(model)
            head = head if head_dtype is None else head._replace(weight_VD=head.weight_VD.to(head_dtype))
            target: Target
            if teacher_head is None:
                target = stored_target(rows, capture, 1.0, len(head.weight_VD))
            else:
                target = final_target(rows, capture, 1.0, len(head.weight_VD))
            for chunk in chunk_rows(head, len(hidden_ND)):
                measures.add(head.logits(hidden_ND[chunk]), rows, target, chunk)
            done += 1
            if on_batch is not None:
                on_batch(cpu_batch)
        for _ in range(done, passes):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    model.train(was_training)
    measures.reduce(reduce)
    return measures.result()


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
    align: str | None = None,
    by_sample: SampleSums | None = None,
    key: str = EVALUATED,
) -> dict[str, Any]:
    """Run ``evaluate`` for a model folder over a cache, or over the samples that ``validation_fraction`` holds out.

    limit: at most this many samples, in the cache's order. advance: progress callback, (samples done, samples).
    required: digest and signatures that the cache must have. trust_remote_code: run code that ships with the model.
    align: of a model with another tokenizer: which rows have a teacher, ``strict``, ``border`` or ``all``.
    by_sample: gets the sums of each sample, and the samples' keys in the cache. key: names the model in errors.
    Adds ``samples``, ``parameters`` and ``kl_is_exact`` to the result; ``bits_per_byte`` if cache or folder say which
    bytes tokens stand for. Raises UserError.
    """
    folder = local_folder(model_folder, key)
    side = in_students = None
    if align is not None:
        settings = load_model_config(folder, key, trust_remote_code).get_text_config()
        side = student_side(folder, key, trust_remote_code, max_length(settings))
        side.check_embedding(settings.vocab_size)
        in_students = evaluation_rows(side, {cache_url: required}, Align[align.upper()])
    cache = open_for_evaluation(cache_url, required=required, side=side, rows=in_students)
    held_out = Selection(validation_fraction=validation_fraction, held_out=validation_fraction > 0)
    rows = sorted_rows(Subset(cache, held_out), limit)
    if not len(rows):
        raise UserError(f"{cache_url}: --validation-fraction {validation_fraction} holds out no sample; raise it")
    check_tokenizer(cache.manifest, folder, cache_url, key, trust_remote_code)
    model: Any = load_model(folder, key, getattr(torch, dtype), trust_remote_code=trust_remote_code)
    check_vocabulary(cache.manifest, model.config, where=cache_url)
    check_positions(model.config, rows.longest, cache_url, key)
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
    token_bytes = cache_token_bytes(cache_url, cache.manifest, folder, key, trust_remote_code)
    capture = cache.manifest.capture
    measured = evaluate(model, loader, capture, head, on_batch, token_bytes=token_bytes, by_sample=by_sample)
    if by_sample is not None:
        by_sample.keys = _keys(cache, rows)
    cache.close()
    exact = {"kl_is_exact": head is not None}
    return {**measured, **exact, "samples": len(rows), "parameters": model.num_parameters()}


def _keys(cache: Cache, rows: SortedRows) -> list[str]:
    """Keys of the samples, in the order of the rows."""
    first = np.concatenate([[0], np.cumsum(cache.shard_sizes)])
    shards = np.searchsorted(first, rows.samples, side="right") - 1
    places = zip(shards.tolist(), (rows.samples - first[shards]).tolist(), strict=True)
    return [cache.index(shard).keys[place] for shard, place in places]
