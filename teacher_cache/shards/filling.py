"""Fill a batch: samples are divided among threads, each of which decodes its share in one compiled call."""

from collections.abc import Sequence

import numpy as np

from schemas.manifest import Signal
from teacher_cache.codec.rows import Layout
from teacher_cache.codec.samples import Columns, fill_samples
from teacher_cache.codec.sections import Frame
from teacher_cache.codec.zstd import addresses, decompressor
from teacher_cache.shards.batch import PADDING, Place

NO_LAYOUT = Layout(np.empty(0, np.int32), 0, 0, 0, 0, np.float32(0))  # if logits are not read
PADDING_COST = 0.25  # time of a padding token relative to a sample's token
SIGNALS: tuple[Signal, ...] = ("tokens", "logits")  # in the order of a sample's frames


class FillError(ValueError):
    """The payload of ``signal`` of the sample at position ``sample`` is invalid."""

    def __init__(self, sample: int, signal: Signal, text: str) -> None:
        super().__init__(text)
        self.sample, self.signal = sample, signal


def share_out(places: Sequence[Place], n: int) -> list[list[Place]]:
    """Divide places into 1 to ``n`` shares of similar cost: greedily, costliest place first, to the cheapest share."""
    if n == 1:
        return [list(places)]
    shares: list[list[Place]] = [[] for _ in range(n)]
    costs = [0.0] * n
    for place in sorted(places, key=_cost, reverse=True):
        cheapest = costs.index(min(costs))
        shares[cheapest].append(place)
        costs[cheapest] += _cost(place)
    return [share for share in shares if share] or [[]]


def _cost(place: Place) -> float:
    return (place.span.stop - place.span.start) * (PADDING_COST if place.sample == PADDING else 1)


def fill(
    columns: Columns,
    places: Sequence[Place],
    frames: Sequence[tuple[Frame, Frame]],
    layout: Layout,
    vocab_size: int,
) -> None:
    """Decode the tokens and logits frames of each place into a batch; empty frames leave padding.

    Raises FillError.
    """
    spans = [(place.row, place.span.start, place.span.stop) for place in places]
    flat = [frame for pair in frames for frame in pair]
    sizes = [(len(frame.data), frame.content_bytes) for frame in flat]
    places_N3, sizes_F2 = np.array(spans, np.int64).reshape(-1, 3), np.array(sizes, np.int64).reshape(-1, 2)
    frames_F3 = np.column_stack([addresses([frame.data for frame in flat]), sizes_F2])
    content = np.empty(max((size for _, size in sizes), default=0), np.uint8)
    content.flags.writeable = False
    at = np.zeros(2, np.int64)
    try:
        fill_samples(places_N3, frames_F3.reshape(-1, 2, 3), decompressor(), content, vocab_size, layout, columns, at)
    except ValueError as error:
        what, seen, wanted = error.args
        raise FillError(places[at[0]].sample, SIGNALS[at[1]], f"{what}: {seen}, wanted {wanted}") from None
