"""log Σ exp over the vocabulary at several temperatures, and the entropy at 1, in one pass over the logits.

Runs on any torch device. In eager mode each step is a pass with a float32 copy; ``torch.compile`` fuses them. Measured
for 512 rows of 49,152 float32 logits and two temperatures on a CPU: 10 ms against 43 ms (without the entropy), where
the head's matrix product takes 217 ms. Without a C++ compiler or Triton the plain function runs.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch

COMPILE_FROM = 8192  # vocabulary size; below, the few seconds of compiling do not pay

logger = logging.getLogger(__name__)
LEAST = -128.0  # nats from the largest logit: exp is 0 in float32, and the product with it is 0, not NaN
LogSums = Callable[[torch.Tensor, torch.Tensor, list[float]], tuple[torch.Tensor, torch.Tensor]]
_cannot_compile = False


def log_sums(
    logits_NV: torch.Tensor, max_N: torch.Tensor, temperatures: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ_v exp((logits_v - max) / T), float32 [N, T], and the entropy at temperature 1 in nats, float32 [N].

    Args:
        logits_NV: any floating dtype; summed in float32.
        max_N: largest logit of each row, or any number near it.
        temperatures: each > 0.
    """
    global _cannot_compile
    n_rows, vocabulary = logits_NV.shape
    if n_rows > 1 and vocabulary >= COMPILE_FROM and not _cannot_compile:
        try:
            return _compiled()(logits_NV, max_N, temperatures)
        except torch._dynamo.exc.TorchDynamoException as error:
            _cannot_compile = True
            reason = str(error).strip().partition("\n")[0][:200]
            logger.warning("torch.compile failed (%s); log-partitions take several times as long", reason)
    return plain_log_sums(logits_NV, max_N, temperatures)


def plain_log_sums(
    logits_NV: torch.Tensor, max_N: torch.Tensor, temperatures: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``log_sums`` in eager mode. Entropy: log Σ exp(s) - Σ s exp(s) / Σ exp(s), where s = logits - max."""
    shifted_NV = logits_NV.float() - max_N.float()[:, None]
    log_sum_NT = torch.stack(
        [(shifted_NV if t == 1 else shifted_NV / t).exp().sum(dim=1).log() for t in temperatures], dim=1
    )
    weights_NV = shifted_NV.exp()
    sum_N = weights_NV.sum(dim=1)
    return log_sum_NT, sum_N.log() - (weights_NV * shifted_NV.clamp(min=LEAST)).sum(dim=1) / sum_N


@cache
def _compiled() -> LogSums:
    return torch.compile(plain_log_sums, dynamic=True)
