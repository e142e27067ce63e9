"""The samples for validation, or for the evaluation of a model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Manifest, Signal
from schemas.train_config import DataConfig, LocalCopiesConfig
from teacher_cache.retarget.row_targets import Align
from teacher_cache.shards.storage import Storage
from teacher_cache.text import one_line
from teacher_cache.trust.required import NOTHING, Required, required_manifest
from trainer.data.mixture import names_tokens, read_as_one
from trainer.data.open_caches import read_capture
from trainer.data.open_for_student import open_for_student
from trainer.data.readable import Cache, Readable
from trainer.data.row_plan import SortedRows
from trainer.data.selection import Selection, Subset
from trainer.data.shares import nothing_left, required_as, required_of, selection_of
from trainer.data.student_side import RowForm, StudentSide, entries_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationData:
    """The samples for validation."""

    cache: Readable
    rows: SortedRows


def open_validation(data: DataConfig, training: Manifest, side: StudentSide | None = None) -> ValidationData | None:
    """Open the validation data; None if none is configured. Raises UserError.

    side: of a student with another tokenizer, whose KL is measured where its tokens begin at a border of the teacher's.
    """
    if data.validation_cache is not None:
        required = required_as(data.validation_digest, data.require_signature)
        rows = evaluation_rows(side, {data.validation_cache: required})
        cache = open_for_evaluation(data.validation_cache, data.local_copies, required, side, rows)
        check_comparable(training, cache.manifest, data.validation_cache)
        return ValidationData(cache, sorted_rows(Subset(cache, Selection())))
    if data.validation_fraction == 0:
        return None
    caches, samples, lengths, first = [], [], [], 0
    rows = evaluation_rows(side, {share.url: required_of(share, data) for share in data.shares})
    for share in data.shares:
        cache = open_for_evaluation(share.url, data.local_copies, required_of(share, data), side, rows)
        subset = Subset(cache, replace(selection_of(share, data), held_out=True))
        held_out, held_out_lengths = subset.selected()
        caches.append(cache)
        samples.append(first + held_out)
        lengths.append(held_out_lengths)
        first += int(cache.shard_sizes.sum())
    if not any(map(len, samples)):
        raise UserError(nothing_left(data.shares[0], data, "to validate on"))
    return ValidationData(read_as_one(caches), SortedRows(np.concatenate(samples), np.concatenate(lengths)))


def evaluation_signals(capture: CaptureConfig) -> tuple[Signal, ...]:
    """Signals that an evaluation reads."""
    return ("tokens", "logits", "final") if capture.final is not None else ("tokens", "logits")


def evaluation_rows(
    side: StudentSide | None, caches: Mapping[str, Required], align: Align = Align.BORDER
) -> RowForm | None:
    """Rows of caches that are evaluated together, for a student with another tokenizer; None if none has another.

    caches: what is required of each, by URL.
    """
    if side is None:
        return None
    manifests = [required_manifest(Storage(url), required) for url, required in caches.items()]
    if not any(map(side.differs, manifests)):
        return None
    n_entries = max(entries_of(manifest.capture, "top_k") for manifest in manifests)
    return RowForm("top_k", 1.0, n_entries, with_untaught=True, align=align)


def open_for_evaluation(
    url: str,
    copies: LocalCopiesConfig | None = None,
    required: Required = NOTHING,
    side: StudentSide | None = None,
    rows: RowForm | None = None,
) -> Cache:
    """Open a cache for the signals that ``evaluate`` reads. Raises UserError.

    side, rows: of a student with another tokenizer, and ``evaluation_rows``.
    """
    return open_for_student(url, evaluation_signals(read_capture(url, required)), copies, required, side, rows)


def sorted_rows(subset: Subset, at_most: int | None = None) -> SortedRows:
    """Rows of a subset's samples, or of the first ``at_most``, for evaluation."""
    return SortedRows(*subset.selected(at_most))


def check_comparable(train: Manifest, validation: Manifest, where: str) -> None:
    """Raise UserError unless both caches have the same tokens; warn if their teachers differ.

    Precision, number of entries and temperatures may differ: each cache is decoded by its own manifest.
    """
    if names_tokens(train.tokenizer) != names_tokens(validation.tokenizer):
        raise UserError(
            f"data.validation_cache: {where}: tokenizer {validation.tokenizer.fingerprint[:12]}… differs from the "
            f"training cache's {train.tokenizer.fingerprint[:12]}…; validate on a cache of the same tokenizer"
        )
    if train.teacher.fingerprint != validation.teacher.fingerprint:
        logger.warning(
            "data.validation_cache: %s: is of another teacher (%s) than the training cache (%s): validation KL is to "
            "the former",
            where,
            one_line(validation.teacher.name),
            one_line(train.teacher.name),
        )
