"""What a run reads: the caches to train on, in which order, and the samples to validate on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, Signal
from schemas.train_config import CacheShare, DataConfig, TrainConfig
from teacher_cache.lengths import max_length
from teacher_cache.text import one_line
from teacher_cache.trust.required import Required
from trainer.data.batches import Cache, Readable, open_cache
from trainer.data.mixture import digest_of, names_tokens, read_as_one
from trainer.data.order import START, CacheOrder, Place, Shuffle, check_length
from trainer.data.row_plan import RowPlan, SortedRows, plan_rows
from trainer.data.selection import Selection, Subset
from trainer.evaluate import open_for_evaluation, sorted_rows
from trainer.run.checkpoint import DataState
from trainer.student.preflight import check_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The caches to train on, opened."""

    caches: list[Cache]
    cache: Readable  # all of them

    @property
    def manifest(self) -> Manifest:
        """The first cache's: all of them agree on what matters to training."""
        return self.cache.manifest

    @property
    def digest(self) -> str:
        """Names the caches in their present state."""
        return digest_of(self.caches)


def open_training_data(data: DataConfig, signals: tuple[Signal, ...]) -> TrainingData:
    """Open the caches to train on for these signals. Raises UserError, also when they cannot be mixed."""
    caches = [open_cache(share.url, signals, data.local_copies, required_of(share, data)) for share in data.shares]
    check_room(data, caches)
    return TrainingData(caches, read_as_one(caches))


def required_of(share: CacheShare, data: DataConfig) -> Required:
    """The digest and the signature that one of the caches to train on must have."""
    return _required(share.digest, share.require_signature or data.require_signature)


def _required(digest: str | None, key: str | None) -> Required:
    return Required(digest, () if key is None else (key,))


def check_room(data: DataConfig, caches: Sequence[Cache]) -> None:
    """Raise UserError if the shards that are read from at a time do not fit in the folder of local copies together.

    Then every few samples a whole shard would be fetched again.
    """
    if data.local_copies is None:
        return
    needed = sum(_bytes_at_a_time(cache, data.shards_mixed) for cache in caches if cache.keeps_copies)
    if needed > data.local_copies.max_bytes:
        raise UserError(
            f"data.local_copies.max_gib: {data.local_copies.max_gib:g} is less than the {needed / 2**30:.3g} GiB of "
            f"the data.shards_mixed = {data.shards_mixed} shards that are read from at a time; raise the one or lower "
            "the other"
        )


def _bytes_at_a_time(cache: Cache, shards_mixed: int) -> float:
    total = sum(cache.manifest.totals.bytes.get(signal, 0) for signal in cache.signals)
    return total * min(1.0, shards_mixed / len(cache.shard_sizes))


def plan_training(config: TrainConfig, caches: Sequence[Cache], rows_per_step: int, state: DataState) -> RowPlan:
    """The rows of the whole run. Raises UserError when nothing is left to train on, or a sample is too long to pack.

    What ``state`` knows of this very plan is not worked out again; what is worked out is noted there.
    """
    data, loop = config.data, config.loop
    orders = []
    places = [Place(*place) for place in state.places] or [START] * len(caches)
    for share, cache, place in zip(data.shares, caches, places, strict=True):
        subset = Subset(cache, _selection(share, data))
        pack_tokens = data.pack_tokens if data.packing else None
        if pack_tokens is not None and pack_tokens < cache.manifest.corpus.settings.max_tokens:
            check_length(subset.selected()[1], pack_tokens, where=share.url)
        order = CacheOrder(subset, Shuffle(loop.seed, data.shards_mixed), pack_tokens, place)
        if place == START and not order.has_rows():
            raise UserError(_nothing_left(share, data, "to train on"))
        orders.append(order)
    weights = [share.weight for share in data.shares if share.weight is not None]
    known = state.planned_rows if state.epochs == loop.epochs else None
    plan = plan_rows(
        orders,
        weights or None,
        global_batch=rows_per_step,
        epochs=loop.epochs,
        max_steps=loop.max_steps if loop.max_steps is not None or known is None else known // rows_per_step,
    )
    if loop.max_steps is None:
        state.epochs, state.planned_rows = loop.epochs, len(plan)
    return plan


def check_lengths(
    config: TrainConfig, caches: Sequence[Cache], validation: SortedRows | None, student: "PreTrainedConfig"
) -> None:
    """Raise UserError if the student has too few positions for a sample. Reads indexes only where that may be."""
    limit = max_length(student)
    if limit is None:
        return
    for share, cache in zip(config.data.shares, caches, strict=True):
        if cache.manifest.corpus.settings.max_tokens > limit:
            longest = _longest(Subset(cache, _selection(share, config.data)), config.data.on_corrupt == "skip")
            check_positions(student, longest, share.url)
    if validation is not None:
        check_positions(student, validation.longest, config.data.validation_cache or "the validation split")


def _longest(subset: Subset, skip_corrupt: bool) -> int:
    """Tokens of the longest selected sample; of shards that are left out anyway none is known."""
    longest = 0
    for shard in range(subset.n_shards):
        try:
            longest = max(longest, int(subset.lengths(subset.samples(shard)).max(initial=0)))
        except CorruptCacheError:
            if not skip_corrupt:
                raise
    return longest


def open_validation(config: TrainConfig, training: Manifest) -> tuple[Readable, SortedRows] | None:
    """The samples to validate on, opened for evaluation; None without any. Raises UserError."""
    data = config.data
    if data.validation_cache is not None:
        cache = open_for_evaluation(
            data.validation_cache, data.local_copies, _required(data.validation_digest, data.require_signature)
        )
        check_comparable(training, cache.manifest, data.validation_cache)
        return cache, sorted_rows(Subset(cache, Selection()))
    if data.validation_fraction == 0:
        return None
    caches, samples, lengths, first = [], [], [], 0
    for share in data.shares:
        cache = open_for_evaluation(share.url, data.local_copies, required_of(share, data))
        subset = Subset(cache, replace(_selection(share, data), held_out=True))
        held_out, held_out_lengths = subset.selected()
        caches.append(cache)
        samples.append(first + held_out)
        lengths.append(held_out_lengths)
        first += int(cache.shard_sizes.sum())
    if not any(map(len, samples)):
        raise UserError(_nothing_left(data.shares[0], data, "to validate on"))
    return read_as_one(caches), SortedRows(np.concatenate(samples), np.concatenate(lengths))


def _selection(share: CacheShare, data: DataConfig) -> Selection:
    layers = None if share.layers is None else tuple(share.layers)
    return Selection(layers, share.limit, data.validation_fraction)


def _nothing_left(share: CacheShare, data: DataConfig, purpose: str) -> str:
    if data.validation_fraction > 0:
        return (
            f"data.validation_fraction: {data.validation_fraction} of the samples of {share.url} leaves nothing "
            f"{purpose}; choose another share"
        )
    return f"data.cache: {share.url}: it has no sample of the layers {share.layers}; choose others"


def check_comparable(train: Manifest, validation: Manifest, where: str) -> None:
    """Raise UserError unless both caches mean the same tokens by their ids; warn where they are of different teachers.

    Precision, number of entries and temperatures may differ: each cache is decoded by its own manifest.
    """
    if names_tokens(train.tokenizer) != names_tokens(validation.tokenizer):
        raise UserError(
            f"data.validation_cache: {where}: tokenizer {validation.tokenizer.fingerprint[:12]}… differs from the "
            f"training cache's {train.tokenizer.fingerprint[:12]}…; validate on a cache of the same tokenizer"
        )
    if train.teacher.fingerprint != validation.teacher.fingerprint:
        logger.warning(
            "data.validation_cache: %s: is of another teacher (%s) than the training cache (%s): the validation KL is "
            "to that one",
            where,
            one_line(validation.teacher.name),
            one_line(train.teacher.name),
        )
