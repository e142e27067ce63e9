"""Records of attention rows: of a sample and of a batch.

Shape letters: P stored query rows of a sample, N of a batch, H attention heads, M stored weights per row.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AttentionSample:
    """Attention rows of one sequence in one layer."""

    positions: np.ndarray  # int32 [P]; query positions in the sequence, ascending
    heads: np.ndarray  # int32 [H]; most focused first
    weights: np.ndarray  # float32 [P, H, M]; largest of each row, descending; 0 beyond the row's keys
    keys: np.ndarray  # int32 [P, H, M]; key positions of these weights; 0 where the weight is 0


@dataclass(frozen=True)
class AttentionBatch:
    """Attention rows of a batch, one entry for each of the N stored query rows of its samples."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; query's column in that row
    first_column: np.ndarray  # int64 [N]; first column of the sample; keys before it belong to another sample
    sample: np.ndarray  # int64 [N]; index of the sample, in the order of the batch rows
    weights: np.ndarray  # float32 [N, H, M]; as in an AttentionSample
    keys: np.ndarray  # int64 [N, H, M]; columns of the batch row
