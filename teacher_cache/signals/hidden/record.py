"""Hidden states as they are stored, of a sample and of a batch.

Shape letters: P stored rows, N those of a batch, C layers, D channels, G groups of channels, O outliers.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HiddenSample:
    """Hidden states of one sequence after some decoder layers, as stored; ``capture.to_floats`` makes floats of them.

    For the dtypes bfloat16 and float16 ``values`` holds their bits (int16) and the other arrays have no entry; for
    float8_e4m3 it holds bits, and for int4 two channels in each of D / 2 bytes, the first in the lower half.
    """

    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    values: np.ndarray  # int8 [P, C, D]; C layers, D channels, in units of their group's scale; 0 for outliers
    scales: np.ndarray  # int16 [P, C, G]; bfloat16 bits; one for each group of channels
    outlier_index: np.ndarray  # int16 [P, C, O]; uint16 bits; channels of the largest absolute values
    outliers: np.ndarray  # int16 [P, C, O]; bfloat16 bits; their values


@dataclass(frozen=True)
class HiddenBatch:
    """The hidden states of a batch, one entry for each of the N rows of its samples at which they are stored."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; token in that row
    values: np.ndarray  # [N, C, D]; this and the next as in a HiddenSample
    scales: np.ndarray  # [N, C, G]
    outlier_index: np.ndarray  # [N, C, O]
    outliers: np.ndarray  # [N, C, O]


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of one sample as floats."""

    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    values: np.ndarray  # float32 [P, C, D], or [P, D] of the final hidden state
    layers: tuple[int, ...]  # their numbers, from 1; of the final hidden state none
