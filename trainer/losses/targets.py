"""What the student is asked to match at N rows: a teacher's softened distribution, in the forms a cache can hold.

- ``ListedTarget``: weights on listed tokens, and perhaps one weight on all other tokens together (the *bucket*). Top-k
  and nucleus rows become one (``top_k_target``), and so do draws (``draws_target``).
- ``DenseTarget``: the teacher's final hidden state and its output head, from which every logit is rebuilt, chunk by
  chunk.

Shape letters: N rows that count, K listed entries, V student vocabulary, U teacher vocabulary, D teacher width.
"""

from dataclasses import dataclass, replace

import torch

from schemas.train_config import Tail
from teacher_cache.output_head import OutputHead


@dataclass(frozen=True)
class ListedTarget:
    """A distribution over listed tokens and, unless ``rest_N`` is None, one bucket for all that are not listed."""

    ids_NK: torch.Tensor  # int64 < V; padding repeats a listed id of the row
    listed_NK: torch.Tensor  # bool; False in the padding
    weights_NK: torch.Tensor  # teacher probabilities; 0 in the padding
    rest_N: torch.Tensor | None  # the bucket's probability
    entropy_N: torch.Tensor  # nats; what makes a cross-entropy with this target a divergence

    def rows(self, rows: slice) -> "ListedTarget":
        """The target of some of the rows."""
        return ListedTarget(
            self.ids_NK[rows],
            self.listed_NK[rows],
            self.weights_NK[rows],
            None if self.rest_N is None else self.rest_N[rows],
            self.entropy_N[rows],
        )


@dataclass(frozen=True)
class DenseTarget:
    """Every token's probability, rebuilt from final hidden states when it is asked for."""

    hidden_ND: torch.Tensor
    head: OutputHead
    temperature: float

    def rows(self, rows: slice) -> "DenseTarget":
        """The target of some of the rows."""
        return replace(self, hidden_ND=self.hidden_ND[rows])

    def log_probs(self) -> torch.Tensor:
        """Softened log-probabilities, float32 [N, U] (float64 stays float64)."""
        return self.head.logits(self.hidden_ND).div_(self.temperature).log_softmax(dim=-1)


Target = ListedTarget | DenseTarget


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x ≤ 0, elementwise; -inf at 0. The split at -log 2 is Mächler's (2012, Rmpfr vignette)."""
    return torch.where(x > -0.6931472, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def softened(logprobs_NK: torch.Tensor, log_partition_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p_T(i) = log p(i) / T - log Σ_v p(v)^(1/T): exact for stored tokens."""
    return logprobs_NK / temperature - log_partition_N[:, None]


def top_k_target(
    ids_NK: torch.Tensor,
    logprobs_NK: torch.Tensor,
    log_partition_N: torch.Tensor,
    temperature: float,
    vocabulary: int,
    tail: Tail = "bucket",
) -> ListedTarget:
    """The target that the stored entries of N rows make for a student of ``vocabulary`` tokens.

    ids_NK: integer; a token the student does not have (id ≥ vocabulary) is not listed. logprobs_NK: at temperature 1,
    nats, -inf in the padding. log_partition_N: log Σ_v p(v)^(1/``temperature``) over the teacher's vocabulary. What
    becomes of the mass that is not stored:

    - ``bucket``: all other tokens together have it. Merging outcomes never raises a divergence (log-sum inequality), so
      the loss is a lower bound of the dense one: it says how much mass the student should put outside, not where.
    - ``renormalise``: nobody; the stored probabilities are divided by their sum. Biased: it asks for none outside.
    - ``ignore``: nobody; the stored probabilities stay what they are, and the student's are taken as they are.

    Quantisation can bring the stored mass of a bucket's row to 1 or above; such a row is divided by it and its bucket
    gets 0. So is a row with every token of the student.
    """
    listed_NK, ids_NK = _listed(ids_NK, logprobs_NK > -torch.inf, vocabulary)
    log_p_NK = softened(logprobs_NK, log_partition_N, temperature)
    log_p_NK = log_p_NK.masked_fill(~listed_NK, -torch.inf)
    log_mass_N = torch.logsumexp(log_p_NK, dim=-1)
    rest_N = None
    if tail == "bucket":
        whole_N = (listed_NK.sum(dim=-1) == vocabulary) | (log_mass_N >= 0)
        log_p_NK = log_p_NK - log_mass_N.masked_fill(~whole_N, 0)[:, None]
        rest_N = log1mexp(log_mass_N.masked_fill(whole_N, 0)).exp()
    elif tail == "renormalise":
        log_p_NK = log_p_NK - log_mass_N.masked_fill(log_mass_N == -torch.inf, 0)[:, None]
    weights_NK = log_p_NK.exp()
    entropy_N = torch.special.entr(weights_NK).sum(dim=-1)
    if rest_N is not None:
        entropy_N = entropy_N + torch.special.entr(rest_N)
    return ListedTarget(ids_NK, listed_NK, weights_NK, rest_N, entropy_N)


def draws_target(
    head: ListedTarget | None, draws_NM: torch.Tensor, entropy_N: torch.Tensor, vocabulary: int
) -> ListedTarget:
    """The target that M draws of each row make, with the exact ``head`` if they were drawn from the tail beyond it.

    head: a target whose bucket is the tail; None if the draws are from the whole distribution. draws_NM: integer ids,
    repeated as often as they were drawn. entropy_N: of the whole softened distribution, nats. With the student's full
    normaliser the expectation of the loss's gradient over the draws is the dense gradient: each draw stands for the
    same share of the mass it was drawn from.
    """
    listed_NM, draws_NM = _listed(draws_NM, torch.ones_like(draws_NM, dtype=torch.bool), vocabulary)
    mass_N = torch.ones_like(entropy_N) if head is None else head.rest_N
    assert mass_N is not None
    weights_NM = (mass_N / draws_NM.shape[1])[:, None] * listed_NM
    if head is None:
        return ListedTarget(draws_NM, listed_NM, weights_NM, None, entropy_N)
    return ListedTarget(
        torch.cat([head.ids_NK, draws_NM], dim=1),
        torch.cat([head.listed_NK, listed_NM], dim=1),
        torch.cat([head.weights_NK, weights_NM], dim=1),
        None,
        entropy_N,
    )


def _listed(ids_NK: torch.Tensor, stored_NK: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries stand for a token of the student, and the ids with all others replaced by a listed one."""
    ids_NK = ids_NK.long()
    listed_NK = stored_NK & (ids_NK < vocabulary)
    any_N1 = ids_NK.gather(1, listed_NK.to(torch.uint8).argmax(dim=1, keepdim=True)).clamp(max=vocabulary - 1)
    return listed_NK, torch.where(listed_NK, ids_NK, any_N1)
