"""The encoders of all signals of one cache."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from schemas.manifest import Manifest, Signal
from teacher_cache.codec.attention import AttentionCodec
from teacher_cache.codec.draws import DrawsCodec
from teacher_cache.codec.hidden import HiddenCodec
from teacher_cache.codec.logits import LogitsCodec
from teacher_cache.codec.permutation import CodeTable, build_code_table
from teacher_cache.records import Captured

Sample = TypeVar("Sample")


class Encoders:
    """Payloads of the signals that ``plan`` asks for."""

    def __init__(self, plan: Manifest) -> None:
        self._plan = plan
        capture, codec, channels = plan.capture, plan.codec, plan.teacher.hidden_size
        self._with_table: dict[Signal, Callable[[Captured], bytes]] = {}
        self._without_table: dict[Signal, Callable[[Captured], bytes]] = {}
        if capture.hidden is not None:
            hidden = HiddenCodec(capture.hidden, codec, len(capture.hidden.layers), channels)
            self._without_table["hidden"] = lambda captured: hidden.encode(_there(captured.hidden))
        if capture.final is not None:
            final = HiddenCodec(capture.final, codec, 1, channels)
            self._without_table["final"] = lambda captured: final.encode(_there(captured.final))
        if capture.attention is not None:
            attention = AttentionCodec(capture.attention, codec)
            self._without_table["attention"] = lambda captured: attention.encode(_there(captured.attention))

    def use_table(self, table: CodeTable) -> None:
        """Code token ids with ``table``."""
        capture, codec = self._plan.capture, self._plan.codec
        logits = LogitsCodec(capture.logits, codec, table)
        self._with_table["logits"] = lambda captured: logits.encode(captured.logits)
        if capture.draws is not None:
            draws = DrawsCodec(capture.draws, codec, table)
            self._with_table["draws"] = lambda captured: draws.encode(_there(captured.draws))

    def encode_ids(self, captured: Captured) -> Iterator[tuple[Signal, bytes]]:
        """The payloads of a sequence's signals that hold token ids. They need a code table first: ``use_table``."""
        yield from ((signal, encode(captured)) for signal, encode in self._with_table.items())

    def encode_others(self, captured: Captured) -> Iterator[tuple[Signal, bytes]]:
        """The payloads of a sequence's other signals."""
        yield from ((signal, encode(captured)) for signal, encode in self._without_table.items())


def make_code_table(scored: Iterable[Captured], vocab_size: int) -> np.ndarray:
    """A code table (uint32 [V], see ``permutation``) from the ids of these sequences' logits and draws."""
    counts = np.zeros(vocab_size, np.int64)
    for captured in scored:
        logits, draws = captured.logits, captured.draws
        counts += np.bincount(logits.ids[np.isfinite(logits.logprobs)], minlength=vocab_size)
        if draws is not None:
            counts += np.bincount(draws.ids.reshape(-1), minlength=vocab_size)
    return build_code_table(counts)


def _there(sample: Sample | None) -> Sample:
    """What an engine was asked for and gave."""
    assert sample is not None
    return sample
