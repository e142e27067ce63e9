"""Rows as a cache would hold them, made from a teacher's logits, and the float64 definitions to compare with."""

import numpy as np
import torch

from schemas.train_config import Divergence, Tail
from trainer.losses.targets import ListedTarget, top_k_target
from trainer.losses.tla import tla_


def sparse_rows(
    teacher_NV: torch.Tensor, k: int, temperature: float, counts_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a cache would hold of ``teacher_NV``: ids, log-probabilities, and the temperature's log-partition."""
    log_p_NV = teacher_NV.log_softmax(-1)
    logprobs, ids = log_p_NV.topk(k)
    if counts_N is not None:
        padding = torch.arange(k)[None] >= counts_N[:, None]
        ids, logprobs = ids.masked_fill(padding, 0), logprobs.masked_fill(padding, -torch.inf)
    return ids, logprobs, torch.logsumexp(log_p_NV / temperature, -1)


def target_of(
    rows: tuple[torch.Tensor, ...], vocabulary: int, temperature: float = 1.0, tail: Tail = "bucket"
) -> ListedTarget:
    """The target that ``sparse_rows`` makes."""
    ids, logprobs, log_partition = rows
    return top_k_target(ids, logprobs, log_partition, temperature, vocabulary, tail)


def tla(
    student_NV: torch.Tensor,
    rows: tuple[torch.Tensor, ...],
    temperature: float = 1.0,
    tail: Tail = "bucket",
    divergence: Divergence = "forward",
) -> torch.Tensor:
    """Each row's loss; the student's logits are left as they are."""
    target = target_of(rows, student_NV.shape[1], temperature, tail)
    return tla_(student_NV.clone(), target, temperature, divergence)[0]


class WithGradient(torch.autograd.Function):
    """A function of logits that returns (loss [N], gradient of its sum), as autograd and gradcheck want it."""

    @staticmethod
    def forward(ctx, logits_NV, loss_and_gradient):
        loss_N, ctx.gradient_NV = loss_and_gradient(logits_NV.clone())
        return loss_N.clone()

    @staticmethod
    def backward(ctx, by_loss_N):
        return ctx.gradient_NV * by_loss_N[:, None], None


def merged(
    student: np.ndarray, teacher: np.ndarray, counts: list[int], k: int, temperature: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per row, in float64: teacher and student probabilities of the stored tokens and of all others together."""
    pairs = []
    for z, logits, count in zip(student, teacher, counts, strict=True):
        p = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
        q = np.exp(z / temperature - np.logaddexp.reduce(z / temperature))
        order = np.argsort(-logits, kind="stable")
        kept, rest = order[: min(k, count)], order[min(k, count) :]
        pairs.append((np.append(p[kept], p[rest].sum()), np.append(q[kept], q[rest].sum())))
    return pairs


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q), nats."""
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


def dense_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """The KL over the whole vocabulary, times temperature², by autograd's means."""
    log_p, log_q = (teacher_NV / temperature).log_softmax(-1), (student_NV / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
