"""The ``final`` signal: the hidden state after the last norm, from which the output head computes every logit.

It uses the records and codec of ``hidden``, with one layer.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.cache_config import FinalCapture
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import LogitsSample
from teacher_cache.signals.hidden import StatesSignal, floats, norms
from teacher_cache.signals.hidden.codec import HiddenCodec
from teacher_cache.signals.hidden.record import HiddenBatch, HiddenSample, HiddenStates
from teacher_cache.signals.side_signal import rows_in_words

if TYPE_CHECKING:
    from teacher_cache.output_head import OutputHead
    from teacher_cache.signals.tap import Tap


class FinalSignal(StatesSignal[FinalCapture]):
    """The ``final`` signal."""

    title = "final hidden states"
    is_target = True
    needs_head = True

    def labels(self, settings: FinalCapture, num_layers: int) -> list[str]:
        """Label of the only layer."""
        return ["final hidden state"]

    def in_words(self, settings: FinalCapture, num_layers: int) -> str:
        """Dtype and rows."""
        return f"{settings.dtype}; rows: {rows_in_words(settings.positions)}"

    def codec(self, settings: FinalCapture, manifest: Manifest, table: CodeTable | None) -> HiddenCodec:
        """Codec of one layer."""
        return HiddenCodec(settings, manifest.codec, 1, manifest.teacher.hidden_size)

    def tap(self, settings: FinalCapture, num_layers: int) -> "Tap":
        """Tap on the output head's input."""
        from teacher_cache.signals.final.capture import FinalTap

        return FinalTap(settings)

    def arrays(self, batch: HiddenBatch, settings: FinalCapture) -> dict[str, np.ndarray]:
        """float32 [N, D]. Loads torch."""
        return {"": floats(batch, settings)[:, 0]}

    def shown(self, sample: HiddenSample, settings: FinalCapture, num_layers: int) -> HiddenStates:
        """float32 [P, D]. Loads torch."""
        return HiddenStates(sample.positions, floats(sample, settings)[:, 0], ())

    def figures(self, sample: HiddenSample, settings: FinalCapture) -> dict[str, dict[int, Any]]:
        """Norm of each row."""
        return {"final_norm": {row: layers[0] for row, layers in norms(sample, settings).items()}}

    def rebuilt_problem(
        self, sample: HiddenSample, logits: LogitsSample, settings: FinalCapture, head: "OutputHead"
    ) -> str:
        """Report states that do not reproduce the stored entries. Loads torch."""
        from teacher_cache.signals.final.rebuilding import final_problem

        return final_problem(sample, logits, head, settings)

    def check_captured(
        self, sample: HiddenSample, logits: LogitsSample, settings: FinalCapture, manifest: Manifest, head: "OutputHead"
    ) -> None:
        """Raise UserError if head and states do not reproduce the logits. Loads torch."""
        from teacher_cache.signals.final.rebuilding import check_rebuilt

        check_rebuilt(sample, logits, settings, manifest, head)
