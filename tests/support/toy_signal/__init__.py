"""A signal of its own: norms of each token's residual stream after one layer, and of its final hidden state.

All that a signal needs, outside the package: this folder, and one line of ``SIDE_SIGNALS``.
"""

from typing import Any

import numpy as np

from schemas.cache_config import Layer, Positions
from schemas.manifest import Manifest
from schemas.strict import Strict
from support.toy_signal.codec import NormsCodec
from support.toy_signal.record import NormsBatch, NormsSample
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.signals.side_signal import SideSignal


class NormsCapture(Strict):
    """Its settings, which the contract has a field for."""

    layer: Layer = 1.0
    positions: Positions = "loss_mask"


class NormsSignal(SideSignal[NormsCapture, NormsSample, NormsBatch]):
    batch = NormsBatch
    title = "norms"

    def in_words(self, settings: NormsCapture, num_layers: int) -> str:
        return f"of layer {settings.layer} and of the final state"

    def codec(self, settings: NormsCapture, manifest: Manifest, table: CodeTable | None) -> NormsCodec:
        return NormsCodec(manifest.codec)

    def empty(self, settings: NormsCapture, manifest: Manifest) -> NormsSample:
        return NormsSample(np.empty(0, np.int32), np.empty((0, 2), np.float32))

    def tap(self, settings: NormsCapture, num_layers: int) -> Any:
        from support.toy_signal.capture import NormsTap

        return NormsTap(settings.layer, num_layers)

    def arrays(self, batch: NormsBatch, settings: NormsCapture) -> dict[str, np.ndarray]:
        return {"": batch.norms}

    def figures(self, sample: NormsSample, settings: NormsCapture) -> dict[str, dict[int, Any]]:
        return {"norms": dict(zip(sample.positions.tolist(), sample.norms.tolist(), strict=True))}

    def problem(self, sample: NormsSample, settings: NormsCapture, manifest: Manifest) -> str:
        wrong = ~(np.isfinite(sample.norms) & (sample.norms > 0))
        return f"{wrong.sum()} norms are not positive" if wrong.any() else ""
