"""Time and memory of training steps of several arms, each built by a function ``make_step(arm)``."""

import time
from collections.abc import Callable, Iterable

from teacher_cache.process import peak_memory_bytes

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
