"""Training under quantisation: layers run with the weights that their integers stand for, the optimiser keeps others.

While a module runs, its quantised weight lies in the module's ``__dict__`` under the parameter's name, where Python
finds it before the parameter; the parameter, its name and everything that holds it stay what they are. Gradients pass
to the parameter as if nothing had been rounded (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).
Scales are fixed, or learned as in LSQ (Esser et al. 2020, arXiv:1902.08153).

Under autocast or FSDP's mixed precision the weights are rounded to bfloat16 before they are quantised, as whoever
gathers them does.

Shape letters: as in ``grid``; fused experts have E before them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainer.quantization.grid import Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = "_scale"  # of the name that a parameter's scales have beside it
SMALLEST = torch.finfo(torch.bfloat16).tiny  # magnitude of a learned scale


class FakeQuantizer:
    """Quantises parameters of a student while their modules run."""

    def __init__(
        self, student: "PreTrainedModel", scales: Mapping[str, torch.Tensor], grid: Grid, learned: bool = False
    ) -> None:
        """Add each parameter's scales to its module, as ``weight_scale`` beside ``weight``.

        scales: by the parameters' names, bfloat16 [O, G] or [E, O, G]. learned: they become float32 parameters; else
        constants, which are not saved.
        """
        self.names, self.grid = tuple(scales), grid
        self._handles: list[Any] = []
        by_module: dict[str, tuple[str, ...]] = {}
        for name, scales_OG in scales.items():
            owner, _, attribute = name.rpartition(".")
            module = student.get_submodule(owner)
            if learned:
                kept = torch.nn.Parameter(scales_OG.float().to(student.device))
                module.register_parameter(attribute + SUFFIX, kept)
            else:
                module.register_buffer(attribute + SUFFIX, scales_OG.to(student.device), persistent=False)
            by_module[owner] = (*by_module.get(owner, ()), attribute)
        for owner, attributes in by_module.items():
            module = student.get_submodule(owner)
            before, after = _hooks(attributes, grid)
            self._handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ]

    def remove(self, student: "PreTrainedModel") -> dict[str, torch.Tensor]:
        """Undo it. Returns the scales as they were used, bfloat16 on the CPU, by parameter."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        scales = {}
        for name in self.names:
            owner, _, attribute = name.rpartition(".")
            module = student.get_submodule(owner)
            scales[name] = as_used(getattr(module, attribute + SUFFIX).detach()).cpu()
            delattr(module, attribute + SUFFIX)
        return scales


@functools.cache  # one pair for all modules of a kind: compiled code is shared by layers whose hooks are the same
def _hooks(attributes: tuple[str, ...], grid: Grid) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        for attribute in attributes:
            weight_OI = module._parameters[attribute]
            assert weight_OI is not None
            vars(module)[attribute] = quantised(weight_OI, getattr(module, attribute + SUFFIX), grid)

    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for attribute in attributes:
            vars(module).pop(attribute, None)

    return before, after


def as_used(scales_OG: torch.Tensor) -> torch.Tensor:
    """The scales in bfloat16, none of them nearer to 0 than its smallest normal number; 0 counts as positive."""
    nearest_OG = torch.where(scales_OG < 0, -SMALLEST, SMALLEST)
    return torch.where(scales_OG.abs() < SMALLEST, nearest_OG, scales_OG).to(torch.bfloat16)


def quantised(weight_OI: torch.Tensor, scales_OG: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What a layer runs with: the weights rounded to the grid, differentiable in weights and learned scales."""
    if torch.is_autocast_enabled(weight_OI.device.type):
        weight_OI = weight_OI.to(torch.get_autocast_dtype(weight_OI.device.type))
    return _round_to_grid(weight_OI, scales_OG, grid.bits, grid.group_size)


@torch.library.custom_op("trainer::round_to_grid", mutates_args=())
def _round_to_grid(weight_OI: torch.Tensor, scales_OG: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Weights rounded to the grid, and to bfloat16, in their own dtype.

    Compilers must not look inside: they would fuse it with what follows and leave out the rounding to bfloat16.
    """
    bf16_OG = as_used(scales_OG)
    rounded = _compiled() if weight_OI.is_cuda else Grid.fake_quantise  # on CPUs operations in place are as fast
    return rounded(Grid(bits, group_size), weight_OI, bf16_OG).to(weight_OI.dtype, copy=True)


@_round_to_grid.register_fake
def _(weight_OI: torch.Tensor, scales_OG: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    return torch.empty_like(weight_OI)


@functools.cache
def _compiled() -> Callable[[Grid, torch.Tensor, torch.Tensor], torch.Tensor]:
    return torch.compile(Grid.fake_quantise, dynamic=True)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    weight_OI, scales_OG, *grid = inputs
    ctx.grid = Grid(*grid)
    ctx.save_for_backward(*([weight_OI, scales_OG] if ctx.needs_input_grad[1] else []))


def _straight_through(ctx: Any, gradient_OI: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    if not ctx.needs_input_grad[1]:
        return gradient_OI, None, None, None
    weight_OI, scales_OG = ctx.saved_tensors
    return gradient_OI, scale_gradient(gradient_OI, weight_OI, scales_OG, ctx.grid), None, None


_round_to_grid.register_autograd(_straight_through, setup_context=_save)


def scale_gradient(
    gradient_OI: torch.Tensor, weight_OI: torch.Tensor, scales_OG: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Gradient of learned scales, float [O, G], of that of the quantised weights.

    d(s · round(w / s)) / ds = round(w / s) - w / s inside the grid, and the grid's end outside (LSQ, equation 3), times
    1 / sqrt(group_size · 2^(bits - 1)), which makes steps of scales as large as those of weights (section 2.2).
    """
    ratios_OGN = grid.ratios(weight_OI, as_used(scales_OG))
    integers_OGN = ratios_OGN.round().clamp_(grid.lowest, -grid.lowest - 1)
    inside_OGN = (ratios_OGN >= grid.lowest) & (ratios_OGN <= -grid.lowest - 1)
    slope_OGN = integers_OGN - torch.where(inside_OGN, ratios_OGN, 0)
    by_group_OGN = gradient_OI.unflatten(-1, (-1, grid.group_size)).to(slope_OGN.dtype)
    damping = 1 / math.sqrt(grid.group_size * -grid.lowest)
    return ((by_group_OGN * slope_OGN).sum(dim=-1) * damping).to(scales_OG.dtype)
