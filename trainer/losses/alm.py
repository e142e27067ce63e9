"""Approximate likelihood matching (ALM) of pieces of text that are whole tokens for teacher and student.

For a piece let a and b be -log of its likelihood, summed over the realised tokens of teacher and student. With
P = exp(-a/τ) and Q = exp(-b/τ) the loss is τ KL((P, 1 - P) ‖ (Q, 1 - Q)). After Minixhofer et al. 2025
(arXiv:2503.20083) and their code, tokenkit, which takes the binary cross-entropy of P and Q, with τ = 100. Differences:

- *KL* is that cross-entropy without the teacher's own entropy: the same gradient, and 0 where both agree, as for TLA.
- *Times τ*: its gradient with respect to -b is (1 - P)/(1 - Q) - 1, which hardly depends on τ: a/b - 1 for large τ.
  Without the factor it is τ times smaller than that of any other loss; with it, a piece of which the teacher is certain
  costs exactly its cross-entropy.
- *Divided by rows that count*, as every loss on logits: nats a token, where theirs is a mean over pieces. A piece then
  has the weight of its tokens' cross-entropies together, and does not weigh less where there are more of them.
- *No constant is subtracted* from the logarithms to keep Q below 1. -log q of a token is computed from the sum over the
  other tokens instead, which is exact where the student is certain; gradients on logits are at most max(1, a).
- *Pieces end at the nearest common border.* Neither are they merged where tokenizers disagree on what may follow, nor
  multiplied by the probability that a word ends there ("debiasing"): that takes the teacher's whole distributions.

Shape letters: N rows, V student vocabulary.
"""

from typing import NamedTuple

import torch

from schemas.cache_config import CaptureConfig
from schemas.train_config import AlmConfig
from trainer.losses.loss import HeadLoss, LossOfChunk, Pair
from trainer.losses.teacher_rows import TeacherRows

MOST_TOKENS = 64  # of a piece: its rows are in one chunk, and no chunk has fewer for a vocabulary of 256 K tokens
LEAST_SURPRISE = 1e-30  # nats; of a piece, so that quotients are finite in float32


class Pieces(NamedTuple):
    """The pieces that N rows predict."""

    last_N: torch.Tensor  # int64; the last row of the piece to which a row belongs; -1: to none
    logprob_N: torch.Tensor  # float, nats; by the teacher, at the last row of each piece

    def of_chunk(self, chunk: slice) -> "Pieces":
        """Those of some of the rows, numbered from 0, which cut no piece."""
        last_n = self.last_N[chunk]
        return Pieces(torch.where(last_n < 0, -1, last_n - chunk.start), self.logprob_N[chunk])


class Alm(HeadLoss[AlmConfig]):
    """Likelihoods of pieces; where teacher and student have the same tokens, each token is one."""

    def __init__(self, settings: AlmConfig, capture: CaptureConfig) -> None:
        super().__init__(settings, capture)
        self.signals = frozenset({"logits"})

    def title(self) -> str:
        """Title in the model card."""
        return f"ALM, likelihoods of pieces of text at temperature {self.settings.temperature}"

    def joined(self, rows: TeacherRows) -> torch.Tensor:
        """Rows of a piece but the first."""
        last_N = pieces_of(rows).last_N
        joined_N = last_N >= 0
        joined_N[1:] &= last_N[1:] == last_N[:-1]
        joined_N[:1] = False
        return joined_N

    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """``alm_`` against the pieces of these rows."""
        temperature, pieces = self.settings.temperature, pieces_of(rows)
        return lambda logits_nV, chunk: alm_(logits_nV, rows.next_ids_N[chunk], pieces.of_chunk(chunk), temperature)


def pieces_of(rows: TeacherRows) -> Pieces:
    """The pieces of these rows that have at most MOST_TOKENS tokens."""
    if rows.piece_tokens_N is None or rows.piece_logprob_N is None:
        tokens_N, logprob_N = rows.next_logprob_N.isfinite().long(), rows.next_logprob_N
    else:
        tokens_N, logprob_N = rows.piece_tokens_N.long(), rows.piece_logprob_N
    tokens_N = tokens_N.where(tokens_N <= MOST_TOKENS, 0)
    n_rows = len(tokens_N)
    row_N = torch.arange(n_rows, device=tokens_N.device)
    last_N = row_N.where(tokens_N > 0, n_rows).flip(0).cummin(dim=0).values.flip(0)  # of the next piece that ends
    is_within_N = last_N < n_rows
    last_N = last_N.where(is_within_N, 0)
    is_within_N &= row_N > last_N - tokens_N[last_N]
    return Pieces(last_N.where(is_within_N, -1), logprob_N.where(tokens_N > 0, 0))


def alm_(logits_NV: torch.Tensor, next_ids_N: torch.Tensor, pieces: Pieces, temperature: float) -> Pair:
    """The loss of each piece at its last row, nats [N], and the gradient of their sum w.r.t. the logits, [N, V].

    next_ids_N: the realised tokens. logits_NV: float32 or float64; overwritten. Both results are finite for finite
    logits.
    """
    next_ids_N1 = next_ids_N.long()[:, None]
    highest_N1 = logits_NV.amax(dim=1, keepdim=True)
    below_N1 = highest_N1 - logits_NV.gather(1, next_ids_N1)
    exp_NV = logits_NV.sub_(highest_N1).exp_()
    own_N1 = exp_NV.gather(1, next_ids_N1)
    others_N1 = exp_NV.scatter_(1, next_ids_N1, 0).sum(dim=1, keepdim=True)
    surprise_N = torch.where(below_N1 > 0, (others_N1 + own_N1).log() + below_N1, others_N1.log1p()).squeeze(1)

    is_within_N, last_N = pieces.last_N >= 0, pieces.last_N.clamp(min=0)
    of_piece_N = torch.zeros_like(surprise_N).index_add_(0, last_N, surprise_N * is_within_N)
    log_q_N = -of_piece_N.clamp(min=LEAST_SURPRISE) / temperature
    log_p_N = pieces.logprob_N.to(log_q_N.dtype).clamp(max=0) / temperature
    other_p_N, other_q_N = -torch.expm1(log_p_N), -torch.expm1(log_q_N)
    ratio_N = other_p_N / other_q_N
    kl_N = log_p_N.exp() * (log_p_N - log_q_N) + torch.xlogy(other_p_N, ratio_N)
    ends_N = pieces.last_N == torch.arange(len(last_N), device=last_N.device)

    slope_N1 = ((ratio_N[last_N] - 1) * is_within_N)[:, None] / (others_N1 + own_N1)
    gradient_NV = exp_NV.mul_(-slope_N1)
    return temperature * kl_N * ends_N, gradient_NV.scatter_(1, next_ids_N1, slope_N1 * others_N1)
