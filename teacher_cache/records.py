"""What passes between the stages: one sequence's tokens, its captured logits rows, and a batch of rows.

Shape letters: S tokens of a sequence, K entries per row, T temperatures, R rows of a batch, L padded row length.
Row t is the teacher's distribution after reading tokens 0..t: it predicts token t+1. Nothing is shifted.
"""

from dataclasses import dataclass

import numpy as np


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
    """One sequence's next-token distributions: the ``logits`` signal."""

    counts: np.ndarray  # int32 [S]; entries of each row, ≤ K
    ids: np.ndarray  # int32 [S, K]; token ids by falling probability; 0 beyond counts
    logprobs: np.ndarray  # float32 [S, K]; log-probabilities at temperature 1, nats; -inf beyond counts
    next_logprob: np.ndarray  # float32 [S]; log-probability of the token that follows; NaN in the last row
    log_partition: np.ndarray  # float32 [S, T]; logsumexp(logits / temperature), one column a temperature


@dataclass(frozen=True)
class RowBatch:
    """Batch arrays. A row is one sample, or several packed one after the other (their positions restart at 0)."""

    input_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    position_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    attention_mask: np.ndarray  # bool [R, L]; False in the padding
    loss_mask: np.ndarray  # bool [R, L]; False in the padding
    ids: np.ndarray  # int32 [R, L, K]; 0 beyond a row's count
    logprobs: np.ndarray  # float32 [R, L, K]; -inf beyond a row's count
    next_logprob: np.ndarray  # float32 [R, L]; NaN at each sample's last token and in the padding
    log_partition: np.ndarray  # float32 [R, L, T]; 0 in the padding
