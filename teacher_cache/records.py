"""What passes between the stages: one sequence's tokens, its captured logits rows, and a batch of rows.

Shape letters: S tokens of a sequence, K entries per row, T temperatures, R rows of a batch, L padded row length.
Row t is the teacher's distribution after reading tokens 0..t: it predicts token t+1. Nothing is shifted.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NO_ROWS = np.empty(0, np.int32)


@dataclass(frozen=True)
class TokenSample:
    """One sequence: the ``tokens`` signal."""

    key: str  # lower-case hex content hash, unique in the cache
    source_id: str
    layer: str
    text: str
    input_ids: np.ndarray  # uint32 [S]
    loss_mask: np.ndarray  # bool [S]; True at t: the prediction of token t+1 is to be learned; last is False
    byte_start: np.ndarray  # uint32 [S]; token t spans text.encode()[byte_start[t]:byte_end[t]]
    byte_end: np.ndarray  # uint32 [S]


@dataclass(frozen=True)
class LogitsSample:
    """Next-token distributions of one sequence: the ``logits`` signal."""

    num_tokens: int  # S, of the sequence
    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    counts: np.ndarray  # int32 [P]; entries of each row, 1 to K
    ids: np.ndarray  # int32 [P, K]; token ids by falling probability; 0 beyond counts
    logprobs: np.ndarray  # float32 [P, K]; log-probabilities at temperature 1, nats; -inf beyond counts
    next_logprob: np.ndarray  # float32 [P]; log-probability of the token that follows; NaN in the sequence's last row
    log_partition: np.ndarray  # float32 [P, T]; log Σ_v p(v)^(1/temperature), one column a temperature


@dataclass(frozen=True)
class HiddenSample:
    """Hidden states of one sequence after some decoder layers, as stored; ``signals/hidden.py`` makes floats of them.

    For the dtypes bfloat16 and float16 ``values`` holds their bits (int16) and the other arrays have no entry; for
    float8_e4m3 it holds bits, and for int4 two channels in each of D / 2 bytes, the first in the lower half.
    """

    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    values: np.ndarray  # int8 [P, C, D]; C layers, D channels, in units of their group's scale; 0 for outliers
    scales: np.ndarray  # int16 [P, C, G]; bfloat16 bits; one for each group of channels
    outlier_index: np.ndarray  # int16 [P, C, O]; uint16 bits; channels of the largest absolute values
    outliers: np.ndarray  # int16 [P, C, O]; bfloat16 bits; their values


@dataclass(frozen=True)
class DrawsSample:
    """Draws from the distributions of one sequence's rows: the ``draws`` signal. T temperatures, M draws."""

    positions: np.ndarray  # int32 [P]; rows of the sequence, rising
    ids: np.ndarray  # int32 [P, T, M]; repeated as often as they were drawn, in no order that means anything
    entropy: np.ndarray  # float32 [P, T]; of the row's whole softened distribution, nats


@dataclass(frozen=True)
class AttentionSample:
    """Rows of attention weights of one sequence in one layer."""

    positions: np.ndarray  # int32 [P]; query rows of the sequence, rising
    heads: np.ndarray  # int32 [H]; most focused first
    weights: np.ndarray  # float32 [P, H, M]; the largest of each row, falling; 0 beyond the row's keys
    keys: np.ndarray  # int32 [P, H, M]; positions these weights fall on; 0 where the weight is


class Request(NamedTuple):
    """One sequence to be scored, and the rows at which each signal is wanted."""

    input_ids: np.ndarray  # integer [S]
    logits_positions: np.ndarray  # int32 [P]; also those of the draws
    hidden_positions: np.ndarray = NO_ROWS  # int32 [P]
    attention_positions: np.ndarray = NO_ROWS  # int32 [P]
    final_positions: np.ndarray = NO_ROWS  # int32 [P]
    seed: int = 0  # of the draws


@dataclass(frozen=True)
class Captured:
    """What an engine gives for one sequence; signals that the configuration does not ask for are None."""

    logits: LogitsSample
    hidden: HiddenSample | None = None  # C layers
    attention: AttentionSample | None = None
    draws: DrawsSample | None = None
    final: HiddenSample | None = None  # the final hidden state as the only layer
    entropy: np.ndarray | None = None  # float32 [P], nats; of each logits row's whole distribution; for figures alone


@dataclass(frozen=True)
class DrawsBatch:
    """The draws of a batch, one entry for each of the N rows of its samples that were drawn for."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; token in that row
    ids: np.ndarray  # int32 [N, T, M]; as in a DrawsSample
    entropy: np.ndarray  # float32 [N, T]


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
class AttentionBatch:
    """The attention rows of a batch, one entry for each of the N query rows of its samples."""

    batch_row: np.ndarray  # int64 [N]; row of the batch
    column: np.ndarray  # int64 [N]; the query's token in that row
    first_column: np.ndarray  # int64 [N]; where the sample starts in that row: keys before it are another's
    sample: np.ndarray  # int64 [N]; which of the batch's samples, counted in the order of its rows
    weights: np.ndarray  # float32 [N, H, M]; as in an AttentionSample
    keys: np.ndarray  # int64 [N, H, M]; tokens in the batch row


@dataclass(frozen=True)
class RowBatch:
    """Batch arrays. A row is one sample, or several packed one after the other (their positions restart at 0).

    Without the logits signal K and T are 0, and nothing is stored of any row.
    """

    input_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    position_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    attention_mask: np.ndarray  # bool [R, L]; False in the padding
    loss_mask: np.ndarray  # bool [R, L]; False in the padding
    ids: np.ndarray  # int32 [R, L, K]; 0 beyond a row's count; rows that are not stored have none
    logprobs: np.ndarray  # float32 [R, L, K]; -inf beyond a row's count
    next_logprob: np.ndarray  # float32 [R, L]; NaN at each sample's last token and where nothing is stored
    log_partition: np.ndarray  # float32 [R, L, T]; 0 where nothing is stored
    hidden: HiddenBatch | None = None
    attention: AttentionBatch | None = None
    draws: DrawsBatch | None = None
    final: HiddenBatch | None = None
