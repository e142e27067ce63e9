"""Records of draws: of a sample and of a batch.

Shape letters: P stored rows of a sample, N of a batch, T temperatures, M draws.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DrawsSample:
    """Draws from the distributions of one sequence's rows."""

    positions: np.ndarray  # int32 [P]; rows of the sequence, ascending
    ids: np.ndarray  # int32 [P, T, M]; repeated as often as drawn, in no particular order
    entropy: np.ndarray  # float32 [P, T], nats; of the row's whole softened distribution


@dataclass(frozen=True)
class DrawsBatch:
    """Draws of a batch, one entry for each of the N stored rows of its samples."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; column in that row
    ids: np.ndarray  # int32 [N, T, M]; as in a DrawsSample
    entropy: np.ndarray  # float32 [N, T], nats
