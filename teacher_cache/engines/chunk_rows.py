"""How many rows of logits exist at a time while the head is applied."""

import torch

from teacher_cache.device_memory import allocatable_bytes
from teacher_cache.engines.transfers import wait_for

CPU_ROWS = 512  # 0.3 GiB of 150,000 float32 logits each; more gain nothing there
MOST_ROWS, LEAST_ROWS = 4096, 16
ROW_BYTES = 30  # per logit, at the peak of drawing in eager mode; compiled, and without draws, it is less
SHARE = 0.5  # of the free memory; the rest is for a step's activations and its other signals


def head_chunk_rows(free_bytes: int | None, vocabulary: int) -> int:
    """Rows per product with the head, a power of two on devices with ``free_bytes``; None: a CPU."""
    if free_bytes is None:
        return CPU_ROWS
    fitting = int(SHARE * free_bytes) // (ROW_BYTES * vocabulary)
    return max(LEAST_ROWS, min(MOST_ROWS, 1 << max(0, fitting.bit_length() - 1)))


def free_memory_bytes(device: torch.device) -> int | None:
    """``allocatable_bytes`` once everything queued on the device is done."""
    wait_for(device)
    return allocatable_bytes(device)
