"""Open caches and check that they fit the student."""

import logging
from typing import TYPE_CHECKING

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Manifest, Signal
from schemas.train_config import LocalCopiesConfig
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.required import NOTHING, Required, required_manifest
from trainer.data.alignment import CheckedReader

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)


def open_cache(
    url: str,
    signals: tuple[Signal, ...] = ("tokens", "logits"),
    copies: LocalCopiesConfig | None = None,
    required: Required = NOTHING,
) -> CheckedReader:
    """Open the cache at ``url`` for these signals.

    Raises UserError, also if it lacks one of them, has no committed sample, or is not as ``required``.
    """
    cache = CheckedReader(
        url,
        signals,
        required_manifest(Storage(url), required) if required else None,
        None if copies is None else (copies.folder, copies.max_bytes),
        bound=bool(required),
    )
    if not cache.shard_sizes.sum():
        raise UserError(f"{url}: the cache has no committed samples; run teacher-cache until it commits a shard")
    if not cache.manifest.complete:
        committed, planned = len(cache.shard_sizes), len(cache.manifest.units)
        logger.warning("%s: the cache is not complete, using %d of %d shards", url, committed, planned)
    return cache


def read_capture(url: str, required: Required = NOTHING) -> CaptureConfig:
    """Capture settings of the cache at ``url``, from its manifest alone. Raises UserError."""
    return required_manifest(Storage(url), required).capture


def check_vocabulary(manifest: Manifest, student: "PreTrainedConfig", where: str) -> None:
    """Raise UserError if the cache at ``where`` has token ids without an embedding in the student.

    An embedding may have more rows than the tokenizer has tokens; entries of those ids count towards the bucket.
    """
    needed = min(manifest.teacher.vocab_size, manifest.tokenizer.vocab_size)
    found = student.get_text_config().vocab_size
    if found < needed:
        raise UserError(
            f"{where}: the cache's tokenizer has {needed} tokens but the student's vocabulary has "
            f"{found}; use a student that shares the teacher's tokenizer"
        )
