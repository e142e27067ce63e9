"""Taps of all captured side signals, for engines."""

from schemas.cache_config import CaptureConfig
from teacher_cache.signals.side_table import SIDE_SIGNALS
from teacher_cache.signals.tap import Tap


def taps_of(capture: CaptureConfig, num_layers: int) -> dict[str, Tap]:
    """Tap of each captured side signal, by name."""
    return {name: SIDE_SIGNALS[name].tap(settings, num_layers) for name, settings in capture.side_settings.items()}
