"""Token-level logits alignment (TLA): KL(teacher ‖ student) from the sparse rows of a cache.

The cache stores n ≤ K tokens of each row and the row's log-partitions, so the softened probability of a stored token
is exact at every cached temperature; what is unknown is how the remaining mass is spread. All other tokens therefore
form one bucket. Merging outcomes never raises a divergence (log-sum inequality), so this is a lower bound of the dense
KL: it says how much mass the student should put outside the stored tokens, not where. With K = V it is the dense KL.

Trade-off: the student's bucket is summed over the complement of the stored tokens (one more [N, V] array) instead of
taken as 1 - (stored mass): in float32 the latter has lost every digit once the student is confident.

Shape letters: N rows that count, V student vocabulary, K stored entries per row.
"""

import torch


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x ≤ 0, elementwise; -inf at 0. The split at -log 2 is Mächler's (2012, Rmpfr vignette)."""
    return torch.where(x > -0.6931472, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def teacher_log_probs(
    logprobs_NK: torch.Tensor,
    log_partition_1_N: torch.Tensor,
    log_partition_t_N: torch.Tensor,
    complete_N: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softened log-probabilities [N, K] of the stored tokens, and [N] of all other tokens together.

    log p_T(i) = (log p_1(i) + log Z_1) / T - log Z_T, where Z_T = Σ_v exp(logit_v / T); exact for stored tokens.
    Quantisation can bring the stored mass P of a row to 1 or above; such a row is divided by P and its bucket gets
    probability 0 (log-probability -inf). So is a row where ``complete_N`` holds: every token of the student is stored,
    no bucket exists. Every row is then a probability distribution.
    """
    offset_N = log_partition_1_N - temperature * log_partition_t_N  # exactly 0 at temperature 1
    log_p_NK = (logprobs_NK + offset_N[:, None]) / temperature
    log_mass_N = torch.logsumexp(log_p_NK, dim=-1)
    whole_N = complete_N | (log_mass_N >= 0)
    log_p_NK = log_p_NK - log_mass_N.masked_fill(~whole_N, 0)[:, None]
    return log_p_NK, log1mexp(log_mass_N.masked_fill(whole_N, 0))


def student_log_probs(
    logits_NV: torch.Tensor, ids_NK: torch.Tensor, stored_NK: torch.Tensor, has_rest_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softened log-probabilities [N, K] of the tokens ``ids_NK``, and [N] of all tokens that are not stored.

    Entries where ``stored_NK`` is False are padding. Where ``has_rest_N`` is False the second result is not used: it is
    some finite number, because the logarithm of an empty sum would put NaN in the gradient.
    """
    z_NV = logits_NV / temperature
    log_z_N = torch.logsumexp(z_NV, dim=-1)
    log_q_NK = z_NV.gather(1, ids_NK) - log_z_N[:, None]
    marks_NV = torch.zeros_like(z_NV, dtype=torch.uint8)
    stored_NV = marks_NV.scatter_reduce_(1, ids_NK, stored_NK.to(torch.uint8), "amax").bool()
    rest_NV = z_NV.masked_fill(stored_NV & has_rest_N[:, None], -torch.inf)
    return log_q_NK, torch.logsumexp(rest_NV, dim=-1) - log_z_N


def tla_per_token(
    logits_NV: torch.Tensor,
    ids_NK: torch.Tensor,
    logprobs_NK: torch.Tensor,
    log_partition_1_N: torch.Tensor,
    log_partition_t_N: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """KL(teacher ‖ student) at ``temperature`` over the stored tokens and one bucket, times temperature²; nats, [N].

    logits_NV: the student's raw logits; computed in float32 (float64 stays float64). ids_NK: integer token ids; a
    token the student does not have (id ≥ V) joins the bucket. logprobs_NK: the teacher's log-probabilities at
    temperature 1, nats, -inf in the padding. log_partition_*_N: logsumexp of the teacher's raw logits, and of them
    divided by ``temperature``. The factor T² keeps gradients comparable across temperatures (Hinton et al. 2015,
    arXiv:1503.02531, section 2.1). Values and gradients are finite for finite logits.
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    vocabulary = logits_NV.shape[-1]
    ids_NK = ids_NK.long()
    stored_NK = (logprobs_NK > -torch.inf) & (ids_NK < vocabulary)
    ids_NK = ids_NK.masked_fill(~stored_NK, 0)
    log_p_NK, log_p_rest_N = teacher_log_probs(
        logprobs_NK.to(logits_NV.dtype).masked_fill(~stored_NK, -torch.inf),
        log_partition_1_N.to(logits_NV.dtype),
        log_partition_t_N.to(logits_NV.dtype),
        stored_NK.sum(dim=-1) == vocabulary,
        temperature,
    )
    has_rest_N = log_p_rest_N > -torch.inf
    log_q_NK, log_q_rest_N = student_log_probs(logits_NV, ids_NK, stored_NK, has_rest_N, temperature)

    kl_NK = log_p_NK.exp() * (log_p_NK.masked_fill(~stored_NK, 0) - log_q_NK)
    kl_rest_N = log_p_rest_N.exp() * (log_p_rest_N.masked_fill(~has_rest_N, 0) - log_q_rest_N)
    kl_N = kl_NK.masked_fill(~stored_NK, 0).sum(dim=-1) + kl_rest_N.masked_fill(~has_rest_N, 0)
    return kl_N * temperature**2
