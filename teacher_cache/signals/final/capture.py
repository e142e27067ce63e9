"""Capturing the final hidden state: what the output head is given."""

from collections.abc import Sequence

import numpy as np
import torch

from schemas.cache_config import FinalCapture
from teacher_cache.signals.hidden.capture import HiddenRows, quantise, to_hidden_sample
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.tap import Tap


class FinalTap(Tap):
    """Keeps the final hidden state as it is stored."""

    reads_final = True

    def __init__(self, settings: FinalCapture) -> None:
        self._settings = settings

    def from_final(self, final_PD: torch.Tensor) -> HiddenRows:
        """Quantised."""
        return quantise(final_PD, self._settings)

    def sample(self, positions: np.ndarray, pieces: Sequence[HiddenRows]) -> HiddenSample:
        """As the only layer."""
        return to_hidden_sample(positions, pieces)
