"""Cross-entropy with the token that really follows (hard labels); shape letters: N rows that count, V vocabulary."""

import torch


def cross_entropy_(logits_NV: torch.Tensor, next_ids_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log softmax(logits)[next id], nats [N], and the gradient of their sum by the logits, [N, V].

    Row t of a sequence goes with ``input_ids[t + 1]``. logits_NV: float32 or float64; overwritten.
    """
    next_ids_N1 = next_ids_N.long()[:, None]
    log_q_NV = logits_NV.sub_(torch.logsumexp(logits_NV, dim=1, keepdim=True))
    loss_N = -log_q_NV.gather(1, next_ids_N1).squeeze(1)
    gradient_NV = log_q_NV.exp_()
    return loss_N, gradient_NV.scatter_add_(1, next_ids_N1, gradient_NV.new_full(next_ids_N1.shape, -1))
