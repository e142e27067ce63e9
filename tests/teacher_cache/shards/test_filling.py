"""Dividing samples among threads and naming errors; decoding is tested with the reader."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.synthetic import random_shards, write_cache
from teacher_cache.codec.samples import Columns
from teacher_cache.codec.sections import NO_FRAME, Frame
from teacher_cache.codec.tokens import training_frame
from teacher_cache.shards.batch import PADDING, Place, allocate_rows
from teacher_cache.shards.filling import NO_LAYOUT, PADDING_COST, FillError, fill, share_out
from teacher_cache.shards.reader import CacheReader

spans = st.integers(1, 4096).map(lambda n: slice(0, n))
places = st.lists(st.builds(Place, st.sampled_from([PADDING, 3, 5]), st.integers(0, 9), spans), max_size=40)


def cost(share: list[Place]) -> float:
    return sum((PADDING_COST if place.sample == PADDING else 1) * place.span.stop for place in share)


@given(places, st.integers(1, 6))
def test_every_place_is_in_one_share_and_none_has_too_much(work: list[Place], n: int) -> None:
    shares = share_out(work, n)
    assert 1 <= len(shares) <= n
    assert sorted(repr(place) for share in shares for place in share) == sorted(map(repr, work))
    assert all(shares) or not work
    largest = max((cost([place]) for place in work), default=0)
    assert max(map(cost, shares)) <= cost(work) / n + largest


def test_padding_alone_takes_no_frame() -> None:
    batch = allocate_rows(2, 5, 3, 1)
    columns = Columns.of(batch)
    work = [Place(PADDING, 0, slice(0, 5)), Place(PADDING, 1, slice(0, 5))]
    fill(columns, work, [(NO_FRAME, NO_FRAME)] * 2, NO_LAYOUT, 10)
    assert not batch.attention_mask.any()
    assert (batch.logprobs == -np.inf).all()
    fill(columns, [], [], NO_LAYOUT, 10)


def test_an_error_says_which_signal_of_which_sample(tmp_path) -> None:
    write_cache(str(tmp_path), random_shards([[6, 9, 4]]))
    reader = CacheReader(str(tmp_path))
    batch = reader.read_rows([[0], [1], [2]])
    columns = Columns.of(batch)
    work = [Place(position, position, slice(0, n)) for position, n in enumerate([6, 9, 4])]
    codec = reader._logits_codec(0)
    found = [reader._locate(place.sample) for place in work]
    pairs = reader._decoded(found, "tokens", training_frame), reader._decoded(found, "logits", codec.frame)
    frames = list(zip(*pairs, strict=True))
    fill(columns, work, frames, codec.layout, 1000)
    tokens, logits = frames[1]
    for signal, pair in (("tokens", (cut(tokens), logits)), ("logits", (tokens, cut(logits)))):
        with pytest.raises(FillError, match="bytes in a broken zstd frame: -") as caught:
            fill(columns, work, [frames[0], pair, frames[2]], codec.layout, 1000)
        assert (caught.value.sample, caught.value.signal) == (1, signal)


def cut(frame: Frame) -> Frame:
    return Frame(frame.data[:-1], frame.content_bytes)
