"""Capture of ``final``: the input of the output head."""

from collections.abc import Sequence

import numpy as np
import torch

from schemas.cache_config import FinalCapture
from teacher_cache.signals.hidden.capture import HiddenRows, quantise, to_hidden_sample
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.tap import Tap


class FinalTap(Tap):
    """Quantises the final hidden state."""

    reads_final = True

    def __init__(self, settings: FinalCapture) -> None:
        self._settings = settings

    def from_final(self, final_PD: torch.Tensor) -> HiddenRows:
        """Quantise rows of the final hidden state."""
        return quantise(final_PD, self._settings)

    def sample(self, positions: np.ndarray, pieces: Sequence[HiddenRows]) -> HiddenSample:
        """Record with one layer."""
        return to_hidden_sample(positions, pieces)
