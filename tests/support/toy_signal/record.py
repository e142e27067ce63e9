"""Norms of a sample and of a batch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NormsSample:
    positions: np.ndarray  # int32 [P]
    norms: np.ndarray  # float32 [P, 2]; of the layer, of the final hidden state


@dataclass(frozen=True)
class NormsBatch:
    batch_row: np.ndarray  # int64 [N]
    column: np.ndarray  # int64 [N]
    norms: np.ndarray  # float32 [N, 2]
