"""The taps of all side signals that are captured: for engines."""

from schemas.cache_config import CaptureConfig
from teacher_cache.signals.side_table import SIDE_SIGNALS
from teacher_cache.signals.tap import Tap


def taps_of(capture: CaptureConfig, num_layers: int) -> dict[str, Tap]:
    """The tap of each side signal that is asked for, by the signal's name."""
    return {name: SIDE_SIGNALS[name].tap(settings, num_layers) for name, settings in capture.side_settings.items()}
