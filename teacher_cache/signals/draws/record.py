"""Draws, of a sample and of a batch.

Shape letters: P stored rows, N those of a batch, T temperatures, M draws.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DrawsSample:
    """Draws from the distributions of one sequence's rows: the ``draws`` signal. T temperatures, M draws."""

    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    ids: np.ndarray  # int32 [P, T, M]; repeated as often as they were drawn, in no order that means anything
    entropy: np.ndarray  # float32 [P, T]; of the row's whole softened distribution, nats


@dataclass(frozen=True)
class DrawsBatch:
    """The draws of a batch, one entry for each of the N rows of its samples that were drawn for."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; token in that row
    ids: np.ndarray  # int32 [N, T, M]; as in a DrawsSample
    entropy: np.ndarray  # float32 [N, T]
