"""Derive, from captured sequences, the sequences that other capture and codec settings would give.

Used to estimate sizes under other settings without scoring again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from schemas.cache_config import CaptureConfig, CodecConfig
from schemas.manifest import Signal
from teacher_cache.records import Captured
from teacher_cache.signals.alternatives import halves, other_values
from teacher_cache.signals.side_table import SIDE_SIGNALS


class Option(NamedTuple):
    """One changed setting, and the sequences as captured under it."""

    setting: str  # as ``--set`` takes it
    signal: Signal  # whose size it changes
    capture: CaptureConfig
    codec: CodecConfig
    captured: list[Captured]


def options(
    capture: CaptureConfig, codec: CodecConfig, captured: Sequence[Captured], channels: int
) -> Iterator[Option]:
    """Yield smaller k, other dtypes and so on, one change at a time; channels: the teacher's hidden size."""
    for k in halves(capture.logits.k):
        logits = capture.logits.model_copy(update={"k": k})
        cut = [_fewer_entries(one, k) for one in captured]
        yield Option(f"capture.logits.k={k}", "logits", capture.model_copy(update={"logits": logits}), codec, cut)
    for logprobs in other_values(CodecConfig, "logprobs", codec.logprobs):
        changed = codec.model_copy(update={"logprobs": logprobs})
        yield Option(f"codec.logprobs={logprobs}", "logits", capture, changed, list(captured))
    for name, settings in capture.side_settings.items():
        for other in SIDE_SIGNALS[name].alternatives(settings, channels):
            again = [replace(one, side={**one.side, name: other.recaptured(one.side[name])}) for one in captured]
            changed_capture = capture.model_copy(update={name: other.settings})
            yield Option(f"capture.{name}.{other.setting}", name, changed_capture, codec, again)


def _fewer_entries(captured: Captured, k: int) -> Captured:
    sample = captured.logits
    cut = replace(sample, counts=np.minimum(sample.counts, k), ids=sample.ids[:, :k], logprobs=sample.logprobs[:, :k])
    return replace(captured, logits=cut)
