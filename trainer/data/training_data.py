"""Open the caches to train on and plan the order of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import UserError
from schemas.manifest import Manifest, Signal
from schemas.train_config import DataConfig, LoopConfig
from trainer.data.data_state import DataState
from trainer.data.mixture import digest_of, read_as_one
from trainer.data.open_for_student import open_for_student
from trainer.data.order import START, CacheOrder, Place, Shuffle, check_length
from trainer.data.readable import Cache, Readable
from trainer.data.row_plan import RowPlan, plan_rows
from trainer.data.selection import Subset
from trainer.data.shares import nothing_left, required_of, selection_of
from trainer.data.student_side import RowForm, StudentSide


@dataclass(frozen=True)
class TrainingData:
    """The caches to train on, opened."""

    caches: list[Cache]
    cache: Readable  # all of them, read as one

    @property
    def manifest(self) -> Manifest:
        """Manifest of the first cache; all agree on what matters for training."""
        return self.cache.manifest

    @property
    def digest(self) -> str:
        """Digest of the caches' present state."""
        return digest_of(self.caches)


def open_training_data(
    data: DataConfig, signals: tuple[Signal, ...], side: StudentSide | None = None, rows: RowForm | None = None
) -> TrainingData:
    """Open the caches to train on for these signals. Raises UserError, also if they cannot be mixed.

    side, rows: of a student with another tokenizer, and how rows are read for it.
    """
    caches = [
        open_for_student(share.url, signals, data.local_copies, required_of(share, data), side, rows)
        for share in data.shares
    ]
    check_room(data, caches)
    return TrainingData(caches, read_as_one(caches))


def check_room(data: DataConfig, caches: Sequence[Cache]) -> None:
    """Raise UserError if the shards that are mixed at a time exceed the limit of local copies.

    Every few samples a whole shard would then be fetched again.
    """
    if data.local_copies is None:
        return
    needed = sum(_bytes_at_a_time(cache, data.shards_mixed) for cache in caches if cache.keeps_copies)
    if needed > data.local_copies.max_bytes:
        raise UserError(
            f"data.local_copies.max_gib: {data.local_copies.max_gib:g} is less than the {needed / 2**30:.3g} GiB of "
            f"the data.shards_mixed = {data.shards_mixed} shards that are read from at a time; raise the former or "
            "lower the latter"
        )


def _bytes_at_a_time(cache: Cache, shards_mixed: int) -> float:
    total = sum(cache.manifest.totals.bytes.get(signal, 0) for signal in cache.signals)
    return total * min(1.0, shards_mixed / len(cache.shard_sizes))


def plan_training(
    data: DataConfig, loop: LoopConfig, caches: Sequence[Cache], rows_per_step: int, state: DataState
) -> RowPlan:
    """The rows of the whole run. Raises UserError if no sample is left to train on, or one is too long to pack.

    Results for this same plan in ``state`` are reused; new ones are stored there.
    """
    orders = []
    places = [Place(*place) for place in state.places] or [START] * len(caches)
    for share, cache, place in zip(data.shares, caches, places, strict=True):
        subset = Subset(cache, selection_of(share, data))
        pack_tokens = data.pack_tokens if data.packing else None
        if pack_tokens is not None and pack_tokens < cache.manifest.corpus.settings.max_tokens:
            check_length(subset.selected()[1], pack_tokens, where=share.url)
        order = CacheOrder(subset, Shuffle(loop.seed, data.shards_mixed), pack_tokens, place)
        if place == START and not order.has_rows():
            raise UserError(nothing_left(share, data, "to train on"))
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
