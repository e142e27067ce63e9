"""Cross-entropy with the next token of the text (hard labels). Shape letters: N rows that count, V vocabulary."""

import torch

from schemas.train_config import CrossEntropyConfig
from trainer.losses.loss import HeadLoss, LossOfChunk, Pair
from trainer.losses.teacher_rows import TeacherRows


class CrossEntropy(HeadLoss[CrossEntropyConfig]):
    """Cross-entropy with the text."""

    def title(self) -> str:
        """Title in the model card."""
        return "cross-entropy with the text"

    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """``cross_entropy_`` with the next tokens."""
        return lambda logits_nV, chunk: cross_entropy_(logits_nV, rows.next_ids_N[chunk])


def cross_entropy_(logits_NV: torch.Tensor, next_ids_N: torch.Tensor) -> Pair:
    """-log softmax(logits)[next id], nats [N], and the gradient of their sum with respect to the logits, [N, V].

    The label of row t is ``input_ids[t + 1]``. logits_NV: float32 or float64; overwritten.
    """
    next_ids_N1 = next_ids_N.long()[:, None]
    log_q_NV = logits_NV.sub_(torch.logsumexp(logits_NV, dim=1, keepdim=True))
    loss_N = -log_q_NV.gather(1, next_ids_N1).squeeze(1)
    gradient_NV = log_q_NV.exp_()
    return loss_N, gradient_NV.scatter_add_(1, next_ids_N1, gradient_NV.new_full(next_ids_N1.shape, -1))
