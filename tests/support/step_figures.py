"""Loss and gradient norm of every step of a training loop, whichever it is, as it runs."""

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from trainer.losses.student_pass import StepShare, StudentPass


def step_figures(train: Callable[[], Any], micro_batches: int) -> dict[str, np.ndarray]:
    """Run a loop of so many micro-batches a step, which clips gradients; the figures are those of this rank."""
    shares: list[float] = []
    norms: list[float] = []
    share_of, clip = StudentPass.share, torch.nn.utils.clip_grad_norm_

    def share(*given: Any, **named: Any) -> StepShare:
        found = share_of(*given, **named)
        shares.append(float(found.loss.detach()))
        return found

    def clipped(*given: Any, **named: Any) -> torch.Tensor:
        norm = clip(*given, **named)
        norms.append(float(norm))
        return norm

    with (
        mock.patch.object(StudentPass, "share", share),
        mock.patch.object(torch.nn.utils, "clip_grad_norm_", clipped),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        train()
    return {"loss": np.array(shares).reshape(-1, micro_batches).sum(axis=1), "grad_norm": np.array(norms)}


def assert_same_steps(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """To 1e-5, every step."""
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=0, err_msg=name)
