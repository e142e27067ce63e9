"""Time and memory of training steps of several arms, each built by a function ``make_step(arm)``."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from teacher_cache.process import peak_memory_bytes
from trainer.losses.objective import Objective
from trainer.losses.teacher_rows import teacher_rows
from trainer.student.forward import masked_hidden, output_head

Step = Callable[[], None]
MakeStep = Callable[[str], Step]


def peak_memory(make_step: MakeStep, arm: str, steps: int) -> int:
    """Peak memory of this process, in bytes, after ``steps`` steps; to be run in its own process."""
    step = make_step(arm)
    for _ in range(steps):
        step()
    return peak_memory_bytes()


def step_seconds(make_step: MakeStep, arms: Iterable[str], repetitions: int) -> dict[str, list[float]]:
    """Seconds of ``repetitions`` steps per arm, alternating between arms, each arm with its own model."""
    steps = {arm: make_step(arm) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for repetition in range(repetitions + 1):
        for arm, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition:  # the first one warms up
                seconds[arm].append(time.perf_counter() - start)
    return seconds


def train_step(student: Any, objective: Objective, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    """Forward, loss on the rows of ``loss_mask``, backward, and the optimiser's step."""
    hidden_ND = masked_hidden(student, batch)
    total, _ = objective.head_terms(hidden_ND, output_head(student), teacher_rows(batch), progress=0.0)
    (total / len(hidden_ND)).backward()
    optimizer.step()
    optimizer.zero_grad()
