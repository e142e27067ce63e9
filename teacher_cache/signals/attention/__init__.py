"""The ``attention`` signal: rows of attention weights of one layer, of its most focused attention heads."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.cache_config import AttentionCapture, layer_number
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.signals.attention.codec import AttentionCodec
from teacher_cache.signals.attention.record import AttentionBatch, AttentionSample
from teacher_cache.signals.layer_checks import check_attention_layer
from teacher_cache.signals.side_signal import Entries, SideSignal, rows_in_words

if TYPE_CHECKING:
    from teacher_cache.signals.tap import Tap


class AttentionSignal(SideSignal[AttentionCapture, AttentionSample, AttentionBatch]):
    """See the module. Decoding checks all there is to check."""

    batch = AttentionBatch
    title = "attention rows"

    def check_teacher(self, name: str, settings: AttentionCapture, text_config: Any, max_tokens: int) -> None:
        """Whether it has such a layer and such attention heads."""
        check_attention_layer(name, settings, text_config, max_tokens)

    def in_words(self, settings: AttentionCapture, num_layers: int) -> str:
        """The layer, how many attention heads and keys, and which rows."""
        layer, rows = layer_number(settings.layer, num_layers), rows_in_words(settings.positions)
        return f"layer {layer}; {settings.n_heads} heads; {settings.keys} keys; rows: {rows}"

    def codec(self, settings: AttentionCapture, manifest: Manifest, table: CodeTable | None) -> AttentionCodec:
        """Of as many attention heads and keys as the settings say."""
        return AttentionCodec(settings, manifest.codec)

    def empty(self, settings: AttentionCapture, manifest: Manifest) -> AttentionSample:
        """Of as many attention heads and keys as the settings say."""
        shape = (0, settings.n_heads, settings.keys)
        heads = np.zeros(settings.n_heads, np.int32)
        return AttentionSample(np.empty(0, np.int32), heads, np.empty(shape, np.float32), np.empty(shape, np.int32))

    def tap(self, settings: AttentionCapture, num_layers: int) -> "Tap":
        """On q and k of the layer."""
        from teacher_cache.signals.attention.capture import AttentionTap

        return AttentionTap(settings, num_layers)

    def join(self, samples: Sequence[AttentionSample], entries: Entries) -> AttentionBatch:
        """With keys as tokens of the batch row."""
        batch = super().join(samples, entries)
        return replace(batch, keys=entries.first_column[:, None, None] + batch.keys)

    def arrays(self, batch: AttentionBatch, settings: AttentionCapture) -> dict[str, np.ndarray]:
        """Weights and keys, [N, H, M]."""
        return {"": batch.weights, "keys": batch.keys}

    def figures(self, sample: AttentionSample, settings: AttentionCapture) -> dict[str, dict[int, Any]]:
        """The strongest weight of each attention head."""
        heads, keys_PH, weights_PH = sample.heads.tolist(), sample.keys[:, :, 0], sample.weights[:, :, 0]
        by_row = {
            row: [
                {"head": head, "key": int(key), "weight": round(float(weight), 4)}
                for head, key, weight in zip(heads, keys_PH[p], weights_PH[p], strict=True)
            ]
            for p, row in enumerate(sample.positions.tolist())
        }
        return {"attention": by_row}
