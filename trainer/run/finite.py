"""Check that loss, gradient norm and weights are finite: the first two in every step, weights before each save.

On one GPU a step's values are copied to the host asynchronously and checked one step later, so the device never waits;
with several ranks they are checked in the reduction that ends each step anyway.
"""

import math
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from schemas.errors import UserError


class FiniteCheck:
    """Asynchronous check of the newest step's loss and gradient norm."""

    def __init__(self) -> None:
        self.waiting: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, step: int, figures: torch.Tensor) -> None:
        """Submit a step's loss and gradient norm, [2]. Raises UserError if the previous step's were not finite."""
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
        """Wait for the values submitted last and check them. Raises UserError."""
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
    """Return the error message for a NaN or infinite value."""
    return (
        f"the {name} is {value} at step {step}; lower optimizer.lr, raise optimizer.warmup_steps, or look for damaged "
        "data with `cache-tools verify`; the newest checkpoint is from before and not affected"
    )


@torch.no_grad()
def count_not_finite(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
    """Count this rank's parameters that contain NaN or infinity; int64 scalar on ``device``. Copies no parameter."""
    shares = [one.to_local() if isinstance(one, DTensor) else one for one in parameters]
    extremes = [torch.stack(torch.aminmax(share)) for share in shares if share.numel()]
    bad = [(~torch.isfinite(pair).all()).to(device) for pair in extremes]
    return torch.stack(bad).sum() if bad else torch.zeros((), dtype=torch.int64, device=device)
