"""Training steps of several arms, each made by a function ``make_step(arm)``: what they take of time and memory."""

import time
from collections.abc import Callable, Iterable

from teacher_cache.process import peak_memory_bytes

Step = Callable[[], None]
MakeStep = Callable[[str], Step]


def peak_memory(make_step: MakeStep, arm: str, steps: int) -> int:
    """Peak bytes of this process, which takes so many steps: call it in one of its own."""
    step = make_step(arm)
    for _ in range(steps):
        step()
    return peak_memory_bytes()


def step_seconds(make_step: MakeStep, arms: Iterable[str], repetitions: int) -> dict[str, list[float]]:
    """Seconds of steps of each arm, by turns, each with a model of its own."""
    steps = {arm: make_step(arm) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for repetition in range(repetitions + 1):
        for arm, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition:  # the first one warms up
                seconds[arm].append(time.perf_counter() - start)
    return seconds
