"""Rounding of the inputs of quantised layers during training: per token, or clipped at a percentile of a calibration.

Gradients pass as if nothing had been rounded; beyond a clip there is none, as the clipped value does not move.

Shape letters: N tokens, I inputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from schemas.errors import UserError
from schemas.train_config import ActivationsConfig
from trainer.quantization.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OCTAVES, BINS = 64, 128  # of a histogram of magnitudes, from 2^-32 to 2^32: a bin is 0.5 % wide


def round_activations(
    student: "PreTrainedModel", sites: Sequence[Site], settings: ActivationsConfig, clips: Mapping[str, float]
) -> Callable[[], None]:
    """Round the inputs of all readers while the student runs. Returns what undoes it.

    clips: by the names of linear layers, if ``settings.clip`` is set. Raises UserError for fused experts, whose inner
    activations no hook can reach.
    """
    undo = ExitStack()
    for name in _layers(sites):
        clip = None if settings.clip is None else clips[name]
        hook = _rounded_input(settings, clip)
        undo.callback(student.get_submodule(name).register_forward_pre_hook(hook).remove)
    return undo.close


def _layers(sites: Sequence[Site]) -> list[str]:
    """Names of the readers' linear layers."""
    for site in sites:
        if any(reader.expert is not None for reader in site.readers):
            raise UserError(
                "quantization.activations: the activations inside fused experts cannot be rounded; leave the key out"
            )
    return [reader.parameter.removesuffix(".weight") for site in sites for reader in site.readers]


def _rounded_input(settings: ActivationsConfig, clip: float | None) -> Callable[..., Any]:
    def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x_NI, *others = args
        if clip is not None:
            return clipped(x_NI, clip, settings.levels), *others
        assert settings.bits is not None
        return per_token(x_NI, settings.bits), *others

    return before


def per_token(x_NI: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded to symmetric integers of ``bits`` bits times max |x| / (2^(bits - 1) - 1) of each token."""
    return _Rounded.apply(x_NI, (1 << (bits - 1)) - 1)


def clipped(x_NI: torch.Tensor, clip: float, levels: int | None) -> torch.Tensor:
    """Clipped to ±``clip`` and rounded to ``levels`` values from one to the other; None: only clipped."""
    return _Clipped.apply(x_NI, clip, levels)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, highest: int) -> torch.Tensor:
        largest_N1 = x_NI.abs().amax(dim=-1, keepdim=True)
        scale_N1 = largest_N1.to(torch.promote_types(x_NI.dtype, torch.float32)).clamp_min(1e-10) / highest
        return (x_NI / scale_N1).round_().mul_(scale_N1).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0], None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, clip: float, levels: int | None) -> torch.Tensor:
        ctx.save_for_backward(x_NI.abs() <= clip)
        inside_NI = x_NI.clamp(-clip, clip)
        if levels is None:
            return inside_NI
        step = 2 * clip / (levels - 1)
        return (inside_NI.to(torch.promote_types(x_NI.dtype, torch.float32)) / step).round_().mul_(step).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (is_inside_NI,) = ctx.saved_tensors
        return gradients[0] * is_inside_NI, None, None


@torch.no_grad()
def clips_of(
    student: "PreTrainedModel", sites: Sequence[Site], sequences: Sequence[np.ndarray], percentile: float
) -> dict[str, float]:
    """The percentile of |input| of every reader's linear layer over the sequences, to 0.5 %, by name."""
    counts = {name: torch.zeros(OCTAVES * BINS, dtype=torch.int64, device=student.device) for name in _layers(sites)}

    def count(name: str) -> Callable[..., None]:
        def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            place = (args[0].abs().float().log2() + OCTAVES / 2).mul_(BINS).clamp_(0, OCTAVES * BINS - 1)
            counts[name] += torch.bincount(place.long().flatten(), minlength=OCTAVES * BINS)

        return before

    with ExitStack() as undo:
        for name in counts:
            undo.callback(student.get_submodule(name).register_forward_pre_hook(count(name)).remove)
        for ids_S in sequences:
            student(input_ids=torch.from_numpy(ids_S)[None].to(student.device), use_cache=False, logits_to_keep=1)
    clips = {}
    for name, counts_B in counts.items():
        upto_B = counts_B.cumsum(dim=0)
        rank = math.ceil(percentile / 100 * int(upto_B[-1]))
        clips[name] = 2.0 ** ((int((upto_B < rank).sum()) + 1) / BINS - OCTAVES / 2)  # the upper edge of its bin
    return clips
