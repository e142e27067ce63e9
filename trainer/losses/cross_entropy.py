"""Cross-entropy with the token that really follows (hard labels); shape letters: N rows that count, V vocabulary."""

import torch


def cross_entropy_per_token(logits_NV: torch.Tensor, next_ids_N: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[next id], nats, [N]; row t of a sequence goes with ``input_ids[t + 1]``.

    Computed in float32 (float64 stays float64).
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(logits_NV, next_ids_N.long(), reduction="none")
