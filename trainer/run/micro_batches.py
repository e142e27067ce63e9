"""A step's micro-batches: they wait on the CPU, and are on the device only one ahead of being computed."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class MicroBatches:
    """The micro-batches of one step, each moved to ``device`` while the one before it is computed; read once.

    On GPUs a stream of its own copies from pinned memory; what was handed out is dropped here, so at most two are on
    the device.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """batches: values have ``to(device, non_blocking=…)``."""
        self._waiting = deque(batches)
        self._count = len(batches)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ahead = self._next()
        while ahead is not None:
            self._wait(ahead)
            batch, ahead = ahead, self._next()
            yield batch
            batch.clear()  # the caller's variable still refers to it

    def _next(self) -> dict[str, Any] | None:
        if not self._waiting:
            return None
        batch = self._waiting.popleft()
        with torch.cuda.stream(self._stream):
            return {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}

    def _wait(self, batch: dict[str, Any]) -> None:
        """Make the computing stream wait for the copies, and the allocator for the computing stream."""
        if self._stream is None:
            return
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for value in batch.values():
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(computing)
