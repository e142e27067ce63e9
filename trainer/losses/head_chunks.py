"""How many rows of logits are computed at one time.

Every chunk rewrites the whole [V, D] gradient of the head's weight. At 1 GiB of float32 logits that is a tenth of a
chunk's time on a GPU, at 256 MiB a third (estimated from bandwidth and arithmetic, for 152 K tokens): chunks are large
where memory allows it. On the CPU they are small, for its caches.
"""

from bisect import bisect_right

import torch

from teacher_cache.device_memory import allocatable_bytes
from teacher_cache.output_head import OutputHead

CPU_BYTES = 1 << 26  # of one chunk's float32 logits
MOST_BYTES, LEAST_BYTES = 1 << 30, 1 << 26  # the same on a GPU
TEMPORARIES = 4  # bytes that exist beside each byte of float32 logits, at most: low-precision copies, target, soft cap
SHARE = 4  # one part in so many of the free memory may be used


def chunk_bytes(free_bytes: int | None) -> int:
    """Bytes of one chunk's float32 logits where ``free_bytes`` of the device's memory are free; None: on the CPU.

    A power of two, so that a resumed run, whose free memory differs a little, adds up in the same order.
    """
    if free_bytes is None:
        return CPU_BYTES
    size = MOST_BYTES
    while size > LEAST_BYTES and size * (1 + TEMPORARIES) * SHARE > free_bytes:
        size //= 2
    return size


def chunk_rows(head: OutputHead, n_rows: int, joined_N: torch.Tensor | None = None) -> list[slice]:
    """``row_slices`` for the logits that a head computes."""
    return row_slices(len(head.weight_VD), head.weight_VD.device, n_rows, joined_N)


def row_slices(vocabulary: int, device: torch.device, n_rows: int, joined_N: torch.Tensor | None = None) -> list[slice]:
    """Slices of the rows whose logits, ``vocabulary`` each, exist at one time.

    joined_N: bool; True at a row that must be in one slice with the row before it. A slice ends early where it would
    cut such rows apart, and is larger than others only to hold more of them than others have rows.
    """
    size = max(1, chunk_bytes(allocatable_bytes(device)) // (4 * vocabulary))
    if joined_N is None:
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    cuts = [*(~joined_N).nonzero().squeeze(1).tolist(), n_rows]
    chunks, start = [], 0
    while start < n_rows:
        at = bisect_right(cuts, start + size) - 1
        end = cuts[at] if cuts[at] > start else cuts[at + 1]
        chunks.append(slice(start, end))
        start = end
    return chunks
