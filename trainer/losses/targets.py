"""Targets of N rows: the teacher's softened distributions, in the forms that a cache can store.

- ``ListedTarget``: weights on listed tokens, optionally with one weight for all other tokens together (the *bucket*).
  Built from top-k and nucleus rows (``top_k_target``) and from draws (``draws_target``).
- ``DenseTarget``: the teacher's final hidden states and output head, from which all logits are rebuilt in chunks.
- ``MixedTarget``: some rows of the one form, some of the other.

Shape letters: N rows that count, n of a chunk, K listed entries, V student vocabulary, U teacher vocabulary, D teacher
width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from schemas.train_config import Tail
from teacher_cache.output_head import OutputHead
from trainer.losses.token_map import TokenMap


@dataclass(frozen=True)
class ListedTarget:
    """A distribution over listed tokens and, unless ``rest_N`` is None, one bucket for all other tokens."""

    ids_NK: torch.Tensor  # int64 < V; padding repeats a listed id of the row
    listed_NK: torch.Tensor  # bool; False in the padding
    weights_NK: torch.Tensor  # teacher probabilities; 0 in the padding
    rest_N: torch.Tensor | None  # the bucket's probability
    entropy_N: torch.Tensor  # nats; cross-entropy minus this is the divergence

    def rows(self, rows: slice | torch.Tensor) -> "ListedTarget":
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
    """Probabilities of all tokens, rebuilt from final hidden states on demand."""

    hidden_ND: torch.Tensor
    head: OutputHead
    temperature: float
    token_map: TokenMap | None = None  # for a student with another tokenizer

    def rows(self, rows: slice) -> "DenseTarget":
        """The target of some of the rows."""
        return replace(self, hidden_ND=self.hidden_ND[rows])

    def log_probs(self) -> torch.Tensor:
        """Softened log-probabilities, float32 [N, U] (float64 stays float64)."""
        return self.head.logits(self.hidden_ND).div_(self.temperature).log_softmax(dim=-1)

    def mapped(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Through the token map: probabilities of the student's tokens, [N, V], and the bucket's, [N].

        The bucket holds the mass of teacher tokens that stand for no student token; it belongs to the student tokens
        that are not named, together. Where all are named, it is removed. Beside the result, at most N × V values exist
        at one time.
        """
        assert self.token_map is not None
        at_once = max(1, len(self.hidden_ND) * len(self.token_map.named_V) // len(self.head.weight_VD))
        chunks = [replace(self, hidden_ND=hidden_nD) for hidden_nD in self.hidden_ND.split(at_once)]
        sums = [self.token_map.sums(chunk.log_probs().exp_()) for chunk in chunks]
        sums_NS = sums[0] if len(sums) == 1 else torch.cat(sums)
        p_NV, rest_N = sums_NS[:, :-1], sums_NS[:, -1]
        if self.token_map.names_all:
            return p_NV / p_NV.sum(dim=1, keepdim=True), torch.zeros_like(rest_N)
        return p_NV, rest_N

    def listed(self) -> ListedTarget:
        """``mapped`` with the named tokens as listed ones."""
        assert self.token_map is not None
        p_NV, rest_N = self.mapped()
        ids_K = self.token_map.named_V.nonzero().squeeze(1)
        least = torch.finfo(p_NV.dtype).tiny  # what underflows still penalises the student's mass there
        weights_NK = p_NV[:, ids_K].clamp_(min=least)
        entropy_N = torch.special.entr(weights_NK).sum(dim=1) + torch.special.entr(rest_N)
        listed_NK = torch.ones_like(ids_K, dtype=torch.bool).expand_as(weights_NK)
        return ListedTarget(ids_K.expand_as(weights_NK), listed_NK, weights_NK, rest_N, entropy_N)


OneForm = ListedTarget | DenseTarget


@dataclass(frozen=True)
class MixedTarget:
    """Rows of several kinds: each kind has a target, of its own rows in their order."""

    kind_N: torch.Tensor  # uint8, on the CPU: which of the targets
    targets: tuple[OneForm, ...]

    def rows(self, rows: slice) -> "MixedTarget":
        """The target of some of the rows."""
        kinds = len(self.targets)
        first_K = torch.bincount(self.kind_N[: rows.start], minlength=kinds)
        end_K = first_K + torch.bincount(self.kind_N[rows], minlength=kinds)
        pairs = zip(self.targets, first_K.tolist(), end_K.tolist(), strict=True)
        return MixedTarget(self.kind_N[rows], tuple(target.rows(slice(first, end)) for target, first, end in pairs))

    def parts(self) -> Iterator[tuple[torch.Tensor, OneForm]]:
        """The numbers of the rows of each kind, int64 on the CPU, and their target; no kind without rows."""
        for kind, target in enumerate(self.targets):
            rows_n = (self.kind_N == kind).nonzero().squeeze(1)
            if len(rows_n):
                yield rows_n, target


Target = OneForm | MixedTarget


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x ≤ 0, elementwise; -inf at 0. The split at -log 2 is Mächler's (2012, Rmpfr vignette)."""
    return torch.where(x > -0.6931472, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def softened(logprobs_NK: torch.Tensor, log_partition_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p_T(i) = log p(i) / T - log Σ_v p(v)^(1/T), nats [N, K]: exact for stored tokens."""
    return logprobs_NK / temperature - log_partition_N[:, None]


def top_k_target(
    ids_NK: torch.Tensor,
    logprobs_NK: torch.Tensor,
    log_partition_N: torch.Tensor,
    temperature: float,
    vocabulary: int,
    tail: Tail = "bucket",
) -> ListedTarget:
    """Target from the stored entries of N rows, for a student of ``vocabulary`` tokens.

    ids_NK: integer; a token that the student lacks (id ≥ vocabulary) is not listed. logprobs_NK: at temperature 1,
    nats, -inf in the padding. log_partition_N: log Σ_v p(v)^(1/``temperature``) over the teacher's vocabulary. The mass
    that is not stored, by ``tail``:

    - ``bucket``: assigned to all other tokens together. Merging outcomes never increases a divergence (log-sum
      inequality), so the loss is a lower bound of the dense one: it constrains the student's total mass outside the
      stored entries, not its distribution.
    - ``renormalise``: removed; stored probabilities are divided by their sum. Biased: the target outside is 0.
    - ``ignore``: dropped; neither the teacher's stored probabilities nor the student's are renormalised.

    With ``bucket``, a row whose stored mass reaches 1 by quantisation, or which lists all tokens of the student, is
    divided by that mass and its bucket gets 0.
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
    exact: ListedTarget | None, draws_NM: torch.Tensor, entropy_N: torch.Tensor, vocabulary: int
) -> ListedTarget:
    """Target from M draws per row, with the exact stored entries if the draws are from the tail beyond them.

    exact: a target whose bucket is the tail; None if the draws are from the whole distribution. draws_NM: integer ids,
    repeated as often as drawn. entropy_N: of the full softened distribution, nats. Each draw gets the same share of the
    mass that it was drawn from, so that, with the student's full normaliser, the gradient's expectation over the draws
    is the dense gradient.
    """
    listed_NM, draws_NM = _listed(draws_NM, torch.ones_like(draws_NM, dtype=torch.bool), vocabulary)
    mass_N = torch.ones_like(entropy_N) if exact is None else exact.rest_N
    assert mass_N is not None
    weights_NM = (mass_N / draws_NM.shape[1])[:, None] * listed_NM
    if exact is None:
        return ListedTarget(draws_NM, listed_NM, weights_NM, None, entropy_N)
    return ListedTarget(
        torch.cat([exact.ids_NK, draws_NM], dim=1),
        torch.cat([exact.listed_NK, listed_NM], dim=1),
        torch.cat([exact.weights_NK, weights_NM], dim=1),
        None,
        entropy_N,
    )


def _listed(ids_NK: torch.Tensor, stored_NK: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries are tokens of the student, bool [N, K], and ids in which all others repeat a listed one, int64."""
    ids_NK = ids_NK.long()
    listed_NK = stored_NK & (ids_NK < vocabulary)
    any_N1 = ids_NK.gather(1, listed_NK.to(torch.uint8).argmax(dim=1, keepdim=True)).clamp(max=vocabulary - 1)
    return listed_NK, torch.where(listed_NK, ids_NK, any_N1)
