"""What a signal would take under other settings, from sequences that were captured under these."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from schemas.cache_config import CaptureConfig, CodecConfig, Quantised
from schemas.manifest import Signal
from teacher_cache.records import Captured
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.hidden.record import HiddenSample

LEAST_ENTRIES = 4


class Option(NamedTuple):
    """One setting changed, and what the sequences would have been captured as."""

    setting: str  # as ``--set`` takes it
    signal: Signal  # whose size it changes
    capture: CaptureConfig
    codec: CodecConfig
    captured: list[Captured]


def options(
    capture: CaptureConfig, codec: CodecConfig, captured: Sequence[Captured], channels: int
) -> Iterator[Option]:
    """Fewer entries and draws, and the other dtypes, one at a time; ``channels`` is the teacher's hidden size."""
    for k in _halves(capture.logits.k):
        logits = capture.logits.model_copy(update={"k": k})
        cut = [_fewer_entries(one, k) for one in captured]
        yield Option(f"capture.logits.k={k}", "logits", capture.model_copy(update={"logits": logits}), codec, cut)
    for logprobs in _others(CodecConfig, "logprobs", codec.logprobs):
        changed = codec.model_copy(update={"logprobs": logprobs})
        yield Option(f"codec.logprobs={logprobs}", "logits", capture, changed, list(captured))
    if capture.draws is not None:
        for n in _halves(capture.draws.n):
            draws = capture.draws.model_copy(update={"n": n})
            cut = [_fewer_draws(one, n) for one in captured]
            yield Option(f"capture.draws.n={n}", "draws", capture.model_copy(update={"draws": draws}), codec, cut)
    if capture.hidden is not None:
        yield from _other_dtypes("hidden", capture.hidden, capture, codec, captured, channels)
    if capture.final is not None:
        yield from _other_dtypes("final", capture.final, capture, codec, captured, channels)


def _other_dtypes(
    signal: Literal["hidden", "final"],
    quantised: Quantised,
    capture: CaptureConfig,
    codec: CodecConfig,
    captured: Sequence[Captured],
    channels: int,
) -> Iterator[Option]:
    for dtype in _others(Quantised, "dtype", quantised.dtype):
        if dtype == "int4" and channels % 2:
            continue
        other = quantised.model_copy(update={"dtype": dtype})
        again = []
        for one in captured:
            changed = _quantised_again(one.side[signal], quantised, other)
            again.append(replace(one, side={**one.side, signal: changed}))
        update: dict[str, Any] = {signal: other}
        yield Option(f"capture.{signal}.dtype={dtype}", signal, capture.model_copy(update=update), codec, again)


def _halves(n: int) -> Iterator[int]:
    while (n := n // 2) >= LEAST_ENTRIES:
        yield n


def _others(model: type[CodecConfig | Quantised], field: str, present: str) -> Iterator[str]:
    """The other values a field may have."""
    return (value for value in get_args(model.model_fields[field].annotation) if value != present)


def _fewer_entries(captured: Captured, k: int) -> Captured:
    sample = captured.logits
    cut = replace(sample, counts=np.minimum(sample.counts, k), ids=sample.ids[:, :k], logprobs=sample.logprobs[:, :k])
    return replace(captured, logits=cut)


def _fewer_draws(captured: Captured, n: int) -> Captured:
    draws: DrawsSample = captured.side["draws"]
    return replace(captured, side={**captured.side, "draws": replace(draws, ids=draws.ids[:, :, :n])})


def _quantised_again(sample: HiddenSample, before: Quantised, after: Quantised) -> HiddenSample:
    from teacher_cache.signals.hidden.capture import quantise, to_floats, to_hidden_sample

    layers = [quantise(layer, after) for layer in to_floats(sample, before).unbind(dim=1)]
    return to_hidden_sample(sample.positions, layers)
