"""Cross-entropy with the next token of the text (hard labels). Shape letters: N rows that count, V vocabulary."""

import torch

from schemas.cache_config import CaptureConfig
from schemas.train_config import CrossEntropyConfig
from trainer.losses.loss import HeadLoss, LossOfChunk, Pair
from trainer.losses.teacher_rows import TeacherRows


class CrossEntropy(HeadLoss[CrossEntropyConfig]):
    """Cross-entropy with the text."""

    def __init__(self, settings: CrossEntropyConfig, capture: CaptureConfig) -> None:
        super().__init__(settings, capture)
        if settings.rows == "untaught":
            self.signals = frozenset({"logits"})

    def title(self) -> str:
        """Title in the model card."""
        where = " where there is no teacher" if self.settings.rows == "untaught" else ""
        return f"cross-entropy with the text{where}"

    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """``cross_entropy_`` with the next tokens."""
        if self.settings.rows == "all":
            return lambda logits_nV, chunk: cross_entropy_(logits_nV, rows.next_ids_N[chunk])
        untaught_N = rows.logprobs_NK[:, 0] == -torch.inf

        def of_untaught(logits_nV: torch.Tensor, chunk: slice) -> Pair:
            loss_n, gradient_nV = cross_entropy_(logits_nV, rows.next_ids_N[chunk])
            return loss_n * untaught_N[chunk], gradient_nV.mul_(untaught_N[chunk, None])

        return of_untaught


def cross_entropy_(logits_NV: torch.Tensor, next_ids_N: torch.Tensor) -> Pair:
    """-log softmax(logits)[next id], nats [N], and the gradient of their sum with respect to the logits, [N, V].

    The label of row t is ``input_ids[t + 1]``. logits_NV: float32 or float64; overwritten.
    """
    next_ids_N1 = next_ids_N.long()[:, None]
    log_q_NV = logits_NV.sub_(torch.logsumexp(logits_NV, dim=1, keepdim=True))
    loss_N = -log_q_NV.gather(1, next_ids_N1).squeeze(1)
    gradient_NV = log_q_NV.exp_()
    return loss_N, gradient_NV.scatter_add_(1, next_ids_N1, gradient_NV.new_full(next_ids_N1.shape, -1))
