"""The ``draws`` signal: tokens sampled from each row's distribution, an unbiased target at any temperature."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.cache_config import DrawsCapture
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import LogitsSample
from teacher_cache.signals.alternatives import Alternative, halves
from teacher_cache.signals.draws.codec import DrawsCodec
from teacher_cache.signals.draws.contradictions import draws_contradictions
from teacher_cache.signals.draws.record import DrawsBatch, DrawsSample
from teacher_cache.signals.side_signal import SideSignal, listed_numbers

if TYPE_CHECKING:
    from teacher_cache.signals.tap import Tap


class DrawsSignal(SideSignal[DrawsCapture, DrawsSample, DrawsBatch]):
    """The ``draws`` signal."""

    batch = DrawsBatch
    title = "draws"
    has_ids = True
    is_target = True

    def in_words(self, settings: DrawsCapture, num_layers: int) -> str:
        """Number of draws, region, temperatures."""
        where = "the tail" if settings.region == "tail" else "the whole distribution"
        return f"{settings.n} from {where}; temperatures {listed_numbers(settings.temperatures)}"

    def codec(self, settings: DrawsCapture, manifest: Manifest, table: CodeTable | None) -> DrawsCodec:
        """Codec that uses the shard's code table."""
        assert table is not None
        return DrawsCodec(settings, manifest.codec, table)

    def empty(self, settings: DrawsCapture, manifest: Manifest) -> DrawsSample:
        """No rows of the configured temperatures and draws."""
        shape = (0, len(settings.temperatures), settings.n)
        return DrawsSample(np.empty(0, np.int32), np.empty(shape, np.int32), np.empty(shape[:2], np.float32))

    def tap(self, settings: DrawsCapture, num_layers: int) -> "Tap":
        """Tap on the logits."""
        from teacher_cache.signals.draws.capture import DrawsTap

        return DrawsTap(settings)

    def arrays(self, batch: DrawsBatch, settings: DrawsCapture) -> dict[str, np.ndarray]:
        """Ids int32 [N, T, M] and entropies float32 [N, T] (nats)."""
        return {"": batch.ids, "entropy": batch.entropy}

    def figures(self, sample: DrawsSample, settings: DrawsCapture) -> dict[str, dict[int, Any]]:
        """Tokens drawn at each temperature."""
        return {"drawn_ids": dict(zip(sample.positions.tolist(), sample.ids.tolist(), strict=True))}

    def alternatives(self, settings: DrawsCapture, channels: int) -> Iterator[Alternative]:
        """Fewer draws."""
        for n in halves(settings.n):
            yield Alternative(f"n={n}", settings.model_copy(update={"n": n}), partial(_first_draws, n))

    def ids(self, sample: DrawsSample) -> np.ndarray:
        """All drawn ids, repeated as often as drawn."""
        return sample.ids.reshape(-1)

    def problem(self, sample: DrawsSample, settings: DrawsCapture, manifest: Manifest) -> str:
        """Report an entropy above log V."""
        most = math.log(manifest.teacher.vocab_size) + 1 / manifest.codec.scalar_steps_per_nat
        largest = sample.entropy.max(initial=0)
        return f"an entropy of {largest:.4g} nats, above log V = {most:.4g}" if largest > most else ""

    def contradictions(
        self, sample: DrawsSample, logits: LogitsSample, settings: DrawsCapture, manifest: Manifest
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Compare with the stored entries."""
        return draws_contradictions(sample, logits, settings, manifest)


def _first_draws(n: int, sample: DrawsSample) -> DrawsSample:
    return replace(sample, ids=sample.ids[:, :, :n])
