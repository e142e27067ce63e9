"""Attention rows, of a sample and of a batch.

Shape letters: P stored query rows, N those of a batch, H attention heads, M weights of a row.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AttentionSample:
    """Rows of attention weights of one sequence in one layer."""

    positions: np.ndarray  # int32 [P]; query rows of the sequence, rising
    heads: np.ndarray  # int32 [H]; most focused first
    weights: np.ndarray  # float32 [P, H, M]; the largest of each row, falling; 0 beyond the row's keys
    keys: np.ndarray  # int32 [P, H, M]; positions these weights fall on; 0 where the weight is


@dataclass(frozen=True)
class AttentionBatch:
    """The attention rows of a batch, one entry for each of the N query rows of its samples."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; the query's token in that row
    first_column: np.ndarray  # int64 [N]; where the sample starts in that row: keys before it are another's
    sample: np.ndarray  # int64 [N]; which of the batch's samples, counted in the order of its rows
    weights: np.ndarray  # float32 [N, H, M]; as in an AttentionSample
    keys: np.ndarray  # int64 [N, H, M]; tokens in the batch row
