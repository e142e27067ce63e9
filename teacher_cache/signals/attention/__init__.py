"""The ``attention`` signal: attention rows of one layer's most focused attention heads."""

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
    """The ``attention`` signal. Decoding already checks everything, so ``problem`` is not overridden."""

    batch = AttentionBatch
    title = "attention rows"

    def check_teacher(self, name: str, settings: AttentionCapture, text_config: Any, max_tokens: int) -> None:
        """Check that the teacher has the layer and the attention heads."""
        check_attention_layer(name, settings, text_config, max_tokens)

    def in_words(self, settings: AttentionCapture, num_layers: int) -> str:
        """Layer, number of attention heads and keys, rows."""
        layer, rows = layer_number(settings.layer, num_layers), rows_in_words(settings.positions)
        return f"layer {layer}; {settings.n_heads} heads; {settings.keys} keys; rows: {rows}"

    def codec(self, settings: AttentionCapture, manifest: Manifest, table: CodeTable | None) -> AttentionCodec:
        """Codec for the configured attention heads and keys."""
        return AttentionCodec(settings, manifest.codec)

    def empty(self, settings: AttentionCapture, manifest: Manifest) -> AttentionSample:
        """No rows of the configured attention heads and keys."""
        shape = (0, settings.n_heads, settings.keys)
        heads = np.zeros(settings.n_heads, np.int32)
        return AttentionSample(np.empty(0, np.int32), heads, np.empty(shape, np.float32), np.empty(shape, np.int32))

    def tap(self, settings: AttentionCapture, num_layers: int) -> "Tap":
        """Tap on q and k of the layer."""
        from teacher_cache.signals.attention.capture import AttentionTap

        return AttentionTap(settings, num_layers)

    def join(self, samples: Sequence[AttentionSample], entries: Entries) -> AttentionBatch:
        """Join samples; keys become columns of the batch row."""
        batch = super().join(samples, entries)
        return replace(batch, keys=entries.first_column[:, None, None] + batch.keys)

    def arrays(self, batch: AttentionBatch, settings: AttentionCapture) -> dict[str, np.ndarray]:
        """Weights float32 and keys int64, [N, H, M]."""
        return {"": batch.weights, "keys": batch.keys}

    def figures(self, sample: AttentionSample, settings: AttentionCapture) -> dict[str, dict[int, Any]]:
        """Largest weight of each attention head and its key."""
        heads, keys_PH, weights_PH = sample.heads.tolist(), sample.keys[:, :, 0], sample.weights[:, :, 0]
        by_row = {
            row: [
                {"head": head, "key": int(key), "weight": round(float(weight), 4)}
                for head, key, weight in zip(heads, keys_PH[p], weights_PH[p], strict=True)
            ]
            for p, row in enumerate(sample.positions.tolist())
        }
        return {"attention": by_row}
