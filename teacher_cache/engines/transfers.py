"""Move data between host and device with few synchronisations: each one stops the host until the device is idle."""

from collections.abc import Sequence

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device; on CUDA through pinned memory, without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of one device to the host; on CUDA into pinned memory, with a single synchronisation for all."""
    cuda = bool(tensors) and tensors[0].device.type == "cuda"
    copies = [torch.empty(one.shape, dtype=one.dtype, pin_memory=cuda) for one in tensors]
    for copy, one in zip(copies, tensors, strict=True):
        copy.copy_(one, non_blocking=True)
    if copies:
        wait_for(tensors[0].device)
    return copies


def wait_for(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
