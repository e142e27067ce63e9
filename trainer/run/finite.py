"""Loss, gradient norm and weights are numbers: looked at in every step, and before anything is saved.

A step's figures are fetched behind the device's back and looked at one step later, so that it never waits; where ranks
agree on something after each step anyway, they are looked at then.
"""

import math
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from schemas.errors import UserError


class FiniteCheck:
    """The newest step's loss and gradient norm, on their way from the device."""

    def __init__(self) -> None:
        self.waiting: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, figures: torch.Tensor) -> None:
        """``figures``: loss and gradient norm of a step, [2]. Raises UserError for those of the step before."""
        self.settle()
        if figures.device.type != "cuda":
            refuse_unless_finite(step, *figures.tolist())
            return
        here = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        here.copy_(figures, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.waiting = (step, here, arrived)

    def settle(self) -> None:
        """Look at what was added last, waiting for it. Raises UserError."""
        if self.waiting is not None:
            (step, figures, arrived), self.waiting = self.waiting, None
            if arrived is not None:
                arrived.synchronize()
            refuse_unless_finite(step, *figures.tolist())


def refuse_unless_finite(step: int, loss: float, gradient_norm: float) -> None:
    """Raise UserError if a step's loss or gradient norm is NaN or infinite."""
    for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            raise UserError(not_finite(name, value, step))


def not_finite(name: str, value: float, step: int) -> str:
    """What is said of a value that is NaN or infinite."""
    return (
        f"the {name} is {value} at step {step}; lower optimizer.lr, raise optimizer.warmup_steps, or look for damaged "
        "data with `cache-tools verify`; no checkpoint has it, the newest is from before"
    )


@torch.no_grad()
def count_not_finite(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
    """How many of this rank's parameters have a value that is NaN or infinite; a scalar. Makes no copy of any."""
    shares = [one.to_local() if isinstance(one, DTensor) else one for one in parameters]
    extremes = [torch.stack(torch.aminmax(share)) for share in shares if share.numel()]
    bad = [(~torch.isfinite(pair).all()).to(device) for pair in extremes]
    return torch.stack(bad).sum() if bad else torch.zeros((), dtype=torch.int64, device=device)
