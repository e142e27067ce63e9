"""Check that the samples fit the student's positions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.errors import CorruptCacheError
from schemas.train_config import TrainConfig
from teacher_cache.lengths import max_length
from trainer.data.readable import Cache
from trainer.data.row_plan import SortedRows
from trainer.data.selection import Subset
from trainer.data.shares import selection_of
from trainer.student.preflight import check_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_lengths(
    config: TrainConfig, caches: Sequence[Cache], validation: SortedRows | None, student: "PreTrainedConfig"
) -> None:
    """Raise UserError if a sample is longer than the student's positions. Reads indexes only if that is possible."""
    limit = max_length(student)
    if limit is None:
        return
    for share, cache in zip(config.data.shares, caches, strict=True):
        if cache.manifest.corpus.settings.max_tokens > limit:
            longest = _longest(Subset(cache, selection_of(share, config.data)), config.data.on_corrupt == "skip")
            check_positions(student, longest, share.url)
    if validation is not None:
        check_positions(student, validation.longest, config.data.validation_cache or "the validation split")


def _longest(subset: Subset, skip_corrupt: bool) -> int:
    """Tokens of the longest selected sample, without unreadable shards if those are skipped."""
    longest = 0
    for shard in range(subset.n_shards):
        try:
            longest = max(longest, int(subset.lengths(subset.samples(shard)).max(initial=0)))
        except CorruptCacheError:
            if not skip_corrupt:
                raise
    return longest
