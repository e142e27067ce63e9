"""Fused output head and losses on its logits, computed in chunks of rows: all logits never exist at one time.

The vocabulary is by far the largest dimension. For each chunk of rows the logits are computed, the loss and its
gradient replace them in place, and the gradient is multiplied into those of hidden states and head; then the chunk is
freed. Gradients are complete after the forward pass; the backward pass only scales them. After Liger Kernel's fused
linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).

Shape letters: N rows that count, n rows of a chunk, D student width, V student vocabulary, L losses.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from teacher_cache.output_head import OutputHead
from trainer.losses.head_chunks import chunk_rows, row_slices

LossOfRows = Callable[[torch.Tensor, slice], tuple[Sequence[torch.Tensor], torch.Tensor]]
"""Maps the logits [n, V] (may be overwritten) of a slice of the rows to the L losses summed over them (scalars), and
the gradient [n, V] of their weighted sum with respect to the logits."""


def head_loss(
    hidden_ND: torch.Tensor,
    head: OutputHead,
    weights: Sequence[float],
    loss_of_rows: LossOfRows,
    joined_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses' weighted sum over all rows (a differentiable scalar), and each loss's unweighted sum, [L].

    Gradients reach ``hidden_ND`` and the head's weight and bias. Matrix products are computed in autocast's dtype where
    autocast is on, else in the weight's; losses in float32 (float64 stays float64). ``backward`` can be called once.
    joined_N: rows that must not be cut apart (``chunk_rows``).
    """
    return _HeadLoss.apply(hidden_ND, head.weight_VD, head.bias_V, head, tuple(weights), loss_of_rows, joined_N)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: OutputHead,
        weights: tuple[float, ...],
        loss_of_rows: LossOfRows,
        joined_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        exact = torch.promote_types(dtype, torch.float32)
        head = head._replace(weight_VD=weight_VD.detach().to(dtype), bias_V=None if bias_V is None else bias_V.detach())
        hidden_ND = hidden_ND.detach()
        totals_L = torch.zeros(len(weights), dtype=exact, device=hidden_ND.device)
        by_hidden_ND = torch.zeros_like(hidden_ND) if for_hidden else None
        by_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if for_weight else None
        by_bias_V = weight_VD.new_zeros(len(weight_VD), dtype=exact) if for_bias else None
        fused = for_weight and adds_in_float32(weight_VD.device, dtype)
        with torch.autocast(device, enabled=False):
            for rows in chunk_rows(head, len(hidden_ND), joined_N):
                hidden_nD = hidden_ND[rows].to(dtype)
                logits_nV = head.logits(hidden_nD)
                slope_nV = None if head.softcap is None else 1 - (logits_nV / head.softcap).square()
                totals, gradient_nV = loss_of_rows(logits_nV, rows)
                totals_L += torch.stack([total.to(exact) for total in totals])
                if slope_nV is not None:
                    gradient_nV = gradient_nV.mul_(slope_nV)
                if head.scale != 1.0:
                    gradient_nV = gradient_nV.mul_(head.scale)
                if by_bias_V is not None:
                    by_bias_V += gradient_nV.sum(dim=0)
                gradient_nV = gradient_nV.to(dtype)
                if by_hidden_ND is not None:
                    by_hidden_ND[rows] = gradient_nV @ head.weight_VD
                if by_weight_VD is not None:
                    _add_product(by_weight_VD, gradient_nV.T, hidden_nD, fused)
        ctx.gradients = (by_hidden_ND, by_weight_VD, by_bias_V)
        ctx.mark_non_differentiable(totals_L)
        return (totals_L * totals_L.new_tensor(weights)).sum(), totals_L

    @staticmethod
    def backward(ctx: Any, *by_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward through head_loss was called twice: the first call freed its gradients")
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: they are the largest tensors of a step
        scaled = [gradient if gradient is None else gradient.mul_(by_outputs[0]) for gradient in gradients]
        return (*scaled, None, None, None, None)


def logits_loss(
    logits_NV: torch.Tensor, weights: Sequence[float], loss_of_rows: LossOfRows, joined_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``head_loss``, for logits that exist already; they are not changed. Their gradient is held beside them."""
    return _LogitsLoss.apply(logits_NV, tuple(weights), loss_of_rows, joined_N)


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: torch.Tensor,
        weights: tuple[float, ...],
        loss_of_rows: LossOfRows,
        joined_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.promote_types(logits_NV.dtype, torch.float32)
        logits_NV = logits_NV.detach()
        totals_L = torch.zeros(len(weights), dtype=exact, device=logits_NV.device)
        by_logits_NV = torch.empty_like(logits_NV)
        with torch.autocast(logits_NV.device.type, enabled=False):
            for rows in row_slices(logits_NV.shape[1], logits_NV.device, len(logits_NV), joined_N):
                totals, by_logits_NV[rows] = loss_of_rows(logits_NV[rows].to(exact, copy=True), rows)
                totals_L += torch.stack([total.to(exact) for total in totals])
        ctx.gradient = by_logits_NV
        ctx.mark_non_differentiable(totals_L)
        return (totals_L * totals_L.new_tensor(weights)).sum(), totals_L

    @staticmethod
    def backward(ctx: Any, *by_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError("backward through logits_loss was called twice: the first call freed its gradient")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(by_outputs[0]), None, None, None


@cache
def adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``addmm`` adds products of this 16-bit dtype to a float32 sum (CUDA, in newer versions of torch)."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    left, right = torch.ones(16, 16, dtype=dtype, device=device), torch.ones(16, 16, dtype=dtype, device=device)
    sum_float32 = torch.ones(16, 16, device=device)
    try:
        _add_product(sum_float32, left, right, fused=True)
    except (RuntimeError, TypeError):  # older versions lack the argument, or a sum of another dtype than the factors
        return False
    return bool((sum_float32 == 17).all())


def _add_product(sum_VD: torch.Tensor, left_Vn: torch.Tensor, right_nD: torch.Tensor, fused: bool) -> None:
    """Add a matrix product in place; products of 16-bit factors are summed in float32.

    fused: ``adds_in_float32``: the product is neither rounded to 16 bits nor written to memory by itself.
    """
    if sum_VD.dtype == left_Vn.dtype:
        sum_VD.addmm_(left_Vn, right_nD)
    elif fused:
        torch.addmm(sum_VD, left_Vn, right_nD, out_dtype=sum_VD.dtype, out=sum_VD)
    else:
        sum_VD += left_Vn @ right_nD
