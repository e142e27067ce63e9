"""log Σ exp over the vocabulary at several temperatures, and the entropy at 1, in one pass over the logits.

Runs on any torch device, compiled (see ``fused``). Measured for 512 rows of 49,152 float32 logits and two temperatures
on a CPU: 10 ms against 43 ms in eager mode (without the entropy), where the head's matrix product takes 217 ms.
"""

import torch

from teacher_cache.signals.fused import fused

LEAST = -128.0  # nats from the largest logit: exp is 0 in float32, and the product with it is 0, not NaN


@fused("log-partitions")
def log_sums(
    logits_NV: torch.Tensor, max_N: torch.Tensor, temperatures: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ_v exp((logits_v - max) / T), float32 [N, T], and the entropy at temperature 1 in nats, float32 [N].

    The entropy is log Σ exp(s) - Σ s exp(s) / Σ exp(s), where s = logits - max.

    Args:
        logits_NV: any floating dtype; summed in float32.
        max_N: largest logit of each row, or any number near it.
        temperatures: each > 0.
    """
    shifted_NV = logits_NV.float() - max_N.float()[:, None]
    log_sum_NT = torch.stack(
        [(shifted_NV if t == 1 else shifted_NV / t).exp().sum(dim=1).log() for t in temperatures], dim=1
    )
    weights_NV = shifted_NV.exp()
    sum_N = weights_NV.sum(dim=1)
    return log_sum_NT, sum_N.log() - (weights_NV * shifted_NV.clamp(min=LEAST)).sum(dim=1) / sum_N
