"""Records of quantised hidden states: of a sample and of a batch.

Shape letters: P stored rows of a sample, N of a batch, C layers, D channels, G groups of channels, O outliers.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HiddenSample:
    """Quantised hidden states of one sequence after some decoder layers; ``capture.to_floats`` dequantises them.

    ``values`` holds, for bfloat16 and float16, their bits as int16 (the other arrays are empty); for float8_e4m3 its
    bits; for int4 D / 2 bytes of two channels each, the first in the lower half.
    """

    positions: np.ndarray  # int32 [P]; rows of the sequence, ascending
    values: np.ndarray  # int8 [P, C, D]; in units of the group's scale; 0 for outliers
    scales: np.ndarray  # int16 [P, C, G]; bfloat16 bits; one per group of channels
    outlier_index: np.ndarray  # int16 [P, C, O]; uint16 bits; channels with the largest absolute values
    outliers: np.ndarray  # int16 [P, C, O]; bfloat16 bits; values of these channels


@dataclass(frozen=True)
class HiddenBatch:
    """Quantised hidden states of a batch, one entry for each of the N stored rows of its samples."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; column in that row
    values: np.ndarray  # [N, C, D]; this and the following as in HiddenSample
    scales: np.ndarray  # [N, C, G]
    outlier_index: np.ndarray  # [N, C, O]
    outliers: np.ndarray  # [N, C, O]


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of one sample as floats."""

    positions: np.ndarray  # int32 [P]; rows of the sequence, ascending
    values: np.ndarray  # float32 [P, C, D]; [P, D] for the final hidden state
    layers: tuple[int, ...]  # layer numbers, from 1; empty for the final hidden state
