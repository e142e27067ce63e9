"""Whether a run's caches were made with another tokenizer than the student's, and how they are read then."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import LossConfig, TrainConfig
from teacher_cache.lengths import max_length
from teacher_cache.model_folder import local_folder
from teacher_cache.retarget.row_targets import Align
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.required import required_manifest
from trainer.data.open_for_student import open_for_student
from trainer.data.readable import Cache
from trainer.data.shares import required_of
from trainer.data.student_side import RowForm, StudentSide, as_students, entries_of, student_side
from trainer.losses.schedule import always_zero
from trainer.losses.target_form import target_form
from trainer.student.build import INIT_FOLDER, load_model_config

BY_POSITION = ("lhsm", "apc")  # losses that compare features of the same token


@dataclass(frozen=True)
class Retargeting:
    """How caches are read for a student with another tokenizer, and the losses on what is read."""

    side: StudentSide
    rows: RowForm
    losses: LossConfig
    capture: CaptureConfig

    @property
    def note(self) -> str:
        """Message to log before training."""
        cut = "" if self.side.max_tokens is None else f", samples cut at {self.side.max_tokens} of its tokens"
        return (
            f"another tokenizer: the teacher's rows become weights on the student's tokens (data.align: "
            f"{self.rows.align.name.lower()}, from {self.rows.form}{cut})"
        )


def open_tokens(config: TrainConfig) -> Cache:
    """Open the first cache to train on for its tokens, which are the student's, whatever the cache was made with.

    Raises UserError.
    """
    share, side = config.data.shares[0], side_of(config)
    retargeting = retargeting_of(config, side)
    rows = None if retargeting is None else retargeting.rows
    return open_for_student(share.url, ("tokens",), None, required_of(share, config.data), side, rows)


def side_of(config: TrainConfig) -> StudentSide | None:
    """The student's tokenizer, if ``data.align`` is set. Raises UserError if the student has none."""
    return None if config.data.align is None else _side(config)


def retargeting_of(config: TrainConfig, side: StudentSide | None) -> Retargeting | None:
    """How to read the caches to train on; None if all have the student's tokenizer, or none but that is allowed.

    Raises UserError if a loss compares what only one tokenizer has.
    """
    data = config.data
    untaught_only = config.losses.cross_entropy.rows == "untaught"
    if side is None:
        if untaught_only:
            raise UserError("losses.cross_entropy.rows: untaught: needs data.align: else every row has a teacher")
        return None
    manifests = [required_manifest(Storage(share.url), required_of(share, data)) for share in data.shares]
    if not any(map(side.differs, manifests)):
        if untaught_only:
            raise UserError("losses.cross_entropy.rows: untaught: the caches have the student's tokenizer; use all")
        return None
    return _retargeting(config, side, manifests)


def _side(config: TrainConfig) -> StudentSide:
    student, data = config.student, config.data
    key = next(key for key in ("checkpoint", "config", "teacher") if getattr(student, key) is not None)
    folder, made = Path(getattr(student, key)), Path(config.output) / INIT_FOLDER
    if made.exists() and config.kept_checkpoint is None:  # its source may be gone
        folder = made
    folder = folder.parent if folder.is_file() else local_folder(str(folder), f"student.{key}")
    model = load_model_config(folder, f"student.{key}", student.trust_remote_code).get_text_config()
    limits = [max_length(model)]
    if data.packing:
        limits.append(data.pack_tokens)
    limit = min((limit for limit in limits if limit is not None), default=None)
    side = student_side(folder, f"student.{key}", student.trust_remote_code, limit, data.retarget_cache)
    side.check_embedding(model.vocab_size)
    return side


def _retargeting(config: TrainConfig, side: StudentSide, manifests: Sequence[Manifest]) -> Retargeting:
    losses, tla = config.losses, config.losses.tla
    for name in BY_POSITION:
        loss = getattr(losses, name)
        if loss is not None and not always_zero(loss.weight):
            raise UserError(
                f"losses.{name}: compares teacher and student token by token, and this student has another tokenizer; "
                "leave it out"
            )
    captures = [manifest.capture for manifest in manifests]
    if tla.target != "final" and not _one_head(side, manifests):
        captures = [capture.model_copy(update={"final": None}) for capture in captures]
    form = target_form(tla, captures[0])
    if form == "final" and not _one_head(side, manifests):
        raise UserError(
            "losses.tla.target: final: the caches of the mixture have several output heads, or the student's own "
            "tokenizer; leave the key out"
        )
    for capture in captures:
        target_form(tla.model_copy(update={"target": form}), capture)
        if form == "final":  # rows that are not whole are taken from the entries
            target_form(tla.model_copy(update={"target": "top_k"}), capture)
    with_pieces = losses.alm is not None and not always_zero(losses.alm.weight)
    with_untaught = with_pieces or not always_zero(losses.cross_entropy.weight)
    n_entries = max(entries_of(capture, form) for capture in captures)
    align = Align[str(config.data.align).upper()]
    rows = RowForm(form, tla.temperature, n_entries, with_untaught, with_pieces, align)
    tail = "ignore" if form == "draws" else tla.tail
    as_read = tla.model_copy(update={"target": "final" if form == "final" else "top_k", "tail": tail})
    return Retargeting(
        side, rows, losses.model_copy(update={"tla": as_read}), as_students(manifests[0], side, rows).capture
    )


def _one_head(side: StudentSide, manifests: Sequence[Manifest]) -> bool:
    """Whether one teacher's output head rebuilds the distributions of all caches, which have another tokenizer."""
    return all(side.differs(manifest) and manifest.head == manifests[0].head is not None for manifest in manifests)
