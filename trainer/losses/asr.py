"""Activation sparsity regulariser (ASR): the mean absolute value of what a feed-forward block feeds its ``down_proj``.

An L1 penalty makes channels small in general, not exactly zero; channels that stay small are what pruning by
accumulated activation norm removes later. Trade-off: it needs no teacher and pulls against every other term, hence the
small weight. The recipe names two, 0.001 and 1e-5, and does not say of what; here it is 1e-3 times the *mean* over
features, rows and layers, which means the same at every width, depth and batch size (a sum would not).

Shape letter: F features of the feed-forward block.
"""

import torch


def mean_abs_per_token(activation_F: torch.Tensor) -> torch.Tensor:
    """Mean of |x| over the last of the dimensions [..., F], [...]; accumulated in float32 (float64 stays float64).

    The gradient is sign(x) / F, and 0 at 0.
    """
    return activation_F.abs().mean(dim=-1, dtype=torch.promote_types(activation_F.dtype, torch.float32))
