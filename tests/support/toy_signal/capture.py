"""Capturing norms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from schemas.cache_config import Layer, layer_number
from support.toy_signal.record import NormsSample
from teacher_cache.signals.tap import Tap


class Norms(NamedTuple):
    norm_P: torch.Tensor


class NormsTap(Tap):
    reads_final = True

    def __init__(self, layer: Layer, num_layers: int) -> None:
        self.layers = [layer_number(layer, num_layers)]

    def from_layer(self, stream_PD: torch.Tensor) -> Norms:
        return Norms(stream_PD.float().norm(dim=1))

    def from_final(self, final_PD: torch.Tensor) -> Norms:
        return Norms(final_PD.float().norm(dim=1))

    def sample(self, positions: np.ndarray, pieces: Sequence[Norms]) -> NormsSample:
        return NormsSample(positions, torch.stack([piece.norm_P for piece in pieces], dim=1).cpu().numpy())
