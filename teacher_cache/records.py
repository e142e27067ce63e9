"""Data passed between the stages: one sequence's tokens, its captured logits rows, and a batch of rows.

Records of side signals (all but tokens and logits) are defined in their signals' folders; here they are held by name.

Shape letters: S tokens of a sequence, K entries per row, T temperatures, R rows of a batch, L padded row length.
Row t is the teacher's distribution after reading tokens 0..t: it predicts token t+1. Nothing is shifted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
    chat: bytes = b""  # JSON of its ChatRecord; nothing for other documents, and in older caches


@dataclass(frozen=True)
class LogitsSample:
    """Next-token distributions of one sequence: the ``logits`` signal."""

    num_tokens: int  # S, of the sequence
    positions: np.ndarray  # int32 [P]; stored positions of the sequence, rising
    counts: np.ndarray  # int32 [P]; entries of each row, 1 to K
    ids: np.ndarray  # int32 [P, K]; token ids by falling probability; 0 beyond counts
    logprobs: np.ndarray  # float32 [P, K]; log-probabilities at temperature 1, nats; -inf beyond counts
    next_logprob: np.ndarray  # float32 [P]; log-probability of the token that follows; NaN in the sequence's last row
    log_partition: np.ndarray  # float32 [P, T]; log Σ_v p(v)^(1/temperature), one column a temperature


class Request(NamedTuple):
    """One sequence to score, and the positions at which each signal is wanted."""

    input_ids: np.ndarray  # integer [S]
    logits_positions: np.ndarray  # int32 [P]
    side_positions: Mapping[str, np.ndarray] = {}  # int32 [P] of each side signal, by name
    seed: int = 0  # of random draws

    def positions(self, signal: str) -> np.ndarray:
        """Positions at which a side signal is wanted, int32 [P]; by default those of the logits."""
        return self.side_positions.get(signal, self.logits_positions)


@dataclass(frozen=True)
class Captured:
    """Everything an engine captures of one sequence."""

    logits: LogitsSample
    side: Mapping[str, Any] = field(default_factory=dict)  # records of the configured side signals, by name
    entropy: np.ndarray | None = (
        None  # float32 [P], nats; of each logits row's whole distribution; reported, not stored
    )


class Pieces(NamedTuple):
    """Pieces of text that are whole tokens for teacher and student, each at the row that predicts its last token."""

    tokens: np.ndarray  # int32 [R, L]; student tokens of the piece, predicted by this row and those before it; 0: none
    logprob: np.ndarray  # float32 [R, L], nats; of the piece's teacher tokens together; 0 where there is none


@dataclass(frozen=True)
class RowBatch:
    """Batch arrays. A row is one sample, or several packed samples (``position_ids`` restart at 0).

    Without the logits signal K and T are 0.
    """

    input_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    position_ids: np.ndarray  # int64 [R, L]; 0 in the padding
    attention_mask: np.ndarray  # bool [R, L]; False in the padding
    loss_mask: np.ndarray  # bool [R, L]; False in the padding
    ids: np.ndarray  # int32 [R, L, K]; 0 beyond a row's count; rows that are not stored have none
    logprobs: np.ndarray  # float32 [R, L, K]; -inf beyond a row's count
    next_logprob: np.ndarray  # float32 [R, L]; NaN at each sample's last token and where nothing is stored
    log_partition: np.ndarray  # float32 [R, L, T]; 0 where nothing is stored
    side: Mapping[str, Any] = field(default_factory=dict)  # batches of the side signals that were read, by name
    pieces: Pieces | None = None  # of a cache with another tokenizer; None: not read, or each token is a piece
    dense: np.ndarray | None = None
    """uint8 [R, L], for a student with another tokenizer: m > 0 where the row's final hidden state is its own whole
    target, through token map m; 0 where the entries are, and in the padding. None: all have their final states."""
    classes: np.ndarray | None = None
    """int16 [R, L], for a student with another tokenizer: c > 0 where the row's weights are on classes of the student's
    tokens, those for cache c of the mixture; 0 elsewhere, and in the padding. None: nowhere."""
