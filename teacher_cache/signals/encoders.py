"""Encoders of all captured signals of a cache, and its code table."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from schemas.manifest import Manifest, Signal
from teacher_cache.codec.permutation import CodeTable, build_code_table
from teacher_cache.records import Captured
from teacher_cache.signals.logits.codec import LogitsCodec
from teacher_cache.signals.side_signal import SideCodec
from teacher_cache.signals.side_table import SIDE_SIGNALS

Payloads = list[tuple[Signal, bytes]]  # of one sequence, by signal


class Encoders:
    """Encodes the signals that ``plan`` captures to payloads. Thread-safe once ``use_table`` was called."""

    def __init__(self, plan: Manifest) -> None:
        self._plan = plan
        self._others = side_codecs(plan, None)
        self._logits: LogitsCodec | None = None
        self._with_ids: dict[str, SideCodec[Any]] = {}

    def use_table(self, table: CodeTable) -> None:
        """Code token ids with ``table``."""
        self._logits = LogitsCodec(self._plan.capture.logits, self._plan.codec, table)
        self._with_ids = side_codecs(self._plan, table)

    def encode(self, captured: Captured) -> Payloads:
        """Encode all signals of a sequence; call ``use_table`` first."""
        return self.encode_ids(captured) + self.encode_others(captured)

    def encode_ids(self, captured: Captured) -> Payloads:
        """Encode the signals of a sequence that hold token ids; call ``use_table`` first."""
        assert self._logits is not None
        side = [(name, codec.encode(captured.side[name])) for name, codec in self._with_ids.items()]
        return [("logits", self._logits.encode(captured.logits)), *side]

    def encode_others(self, captured: Captured) -> Payloads:
        """Encode the other signals of a sequence."""
        return [(name, codec.encode(captured.side[name])) for name, codec in self._others.items()]


def side_codecs(manifest: Manifest, table: CodeTable | None) -> dict[str, SideCodec[Any]]:
    """Codecs, by name, of the side signals that need a code table or, if ``table`` is None, of those that do not."""
    return {
        name: SIDE_SIGNALS[name].codec(settings, manifest, table)
        for name, settings in manifest.capture.side_settings.items()
        if SIDE_SIGNALS[name].has_ids == (table is not None)
    }


def signals_with_ids(captured: Captured) -> Captured:
    """Drop the signals that hold no token ids."""
    return Captured(captured.logits, {name: part for name, part in captured.side.items() if SIDE_SIGNALS[name].has_ids})


def make_code_table(scored: Iterable[Captured], vocab_size: int) -> np.ndarray:
    """Build a code table (uint32 [V], see ``permutation``) from the token ids in these sequences' signals."""
    counts = np.zeros(vocab_size, np.int64)
    for captured in scored:
        logits = captured.logits
        counts += np.bincount(logits.ids[np.isfinite(logits.logprobs)], minlength=vocab_size)
        for name, part in signals_with_ids(captured).side.items():
            counts += np.bincount(SIDE_SIGNALS[name].ids(part), minlength=vocab_size)
    return build_code_table(counts)
