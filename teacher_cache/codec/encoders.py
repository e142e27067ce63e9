"""The encoders of all signals of one cache."""

from collections.abc import Iterator

import numpy as np

from schemas.manifest import Manifest, Signal
from teacher_cache.codec.attention import AttentionCodec
from teacher_cache.codec.hidden import HiddenCodec
from teacher_cache.codec.logits import LogitsEncoder
from teacher_cache.records import Captured, LogitsSample


class Encoders:
    """Payloads of the signals that ``plan`` asks for. Logits need a code table first: ``use_table``."""

    def __init__(self, plan: Manifest) -> None:
        self._plan = plan
        capture, codec = plan.capture, plan.codec
        self._logits: LogitsEncoder | None = None
        self._hidden = self._attention = None
        if capture.hidden is not None:
            self._hidden = HiddenCodec(capture.hidden, codec, plan.teacher.hidden_size)
        if capture.attention is not None:
            self._attention = AttentionCodec(capture.attention, codec)

    def use_table(self, table: np.ndarray) -> None:
        """Code token ids with ``table`` (uint32 [V])."""
        self._logits = LogitsEncoder(self._plan.capture.logits, self._plan.codec, table)

    def encode_logits(self, sample: LogitsSample) -> bytes:
        """The payload of a sequence's logits."""
        assert self._logits is not None
        return self._logits.encode(sample)

    def encode(self, captured: Captured) -> Iterator[tuple[Signal, bytes]]:
        """The payloads of a sequence's other signals."""
        if self._hidden is not None and captured.hidden is not None:
            yield "hidden", self._hidden.encode(captured.hidden)
        if self._attention is not None and captured.attention is not None:
            yield "attention", self._attention.encode(captured.attention)
