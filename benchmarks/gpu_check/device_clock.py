"""Seconds and peak memory of code on a device."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch


class Cost(NamedTuple):
    """Median seconds of a call; on CUDA, the most bytes that it held beyond those before it (0 elsewhere)."""

    seconds: float
    peak_bytes: int


def wait(device: str) -> None:
    """Until the device has done what was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def cost_of(call: Callable[[], object], device: str, repetitions: int) -> Cost:
    """Run ``call`` once to warm up, then measure it."""
    call()
    wait(device)
    before = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    return Cost(statistics.median(seconds), peak)


def synchronisations(call: Callable[[], object]) -> int:
    """How often ``call`` makes the host wait for the GPU, as PyTorch counts; for CUDA only."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)
