"""Table of the side signals: all signals except tokens and logits. To add one, write its folder, add its line here, and
give its settings a field of ``CaptureConfig``, the contract.
"""

from typing import Any

from schemas.cache_config import CaptureConfig
from teacher_cache.signals.attention import AttentionSignal
from teacher_cache.signals.draws import DrawsSignal
from teacher_cache.signals.final import FinalSignal
from teacher_cache.signals.hidden import HiddenSignal
from teacher_cache.signals.side_signal import SideSignal

SIDE_SIGNALS: dict[str, SideSignal[Any, Any, Any]] = {
    "draws": DrawsSignal(),
    "final": FinalSignal(),
    "hidden": HiddenSignal(),
    "attention": AttentionSignal(),
}


def needs_head(capture: CaptureConfig) -> bool:
    """Whether a captured signal needs the teacher's output head in the cache."""
    return any(SIDE_SIGNALS[name].needs_head for name in capture.side_settings)


def check_teacher(capture: CaptureConfig, text_config: Any, max_tokens: int) -> None:
    """Raise UserError if a teacher of this configuration cannot provide a captured side signal."""
    for name, settings in capture.side_settings.items():
        SIDE_SIGNALS[name].check_teacher(name, settings, text_config, max_tokens)
