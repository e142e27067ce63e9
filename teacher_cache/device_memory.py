"""Memory of a GPU."""

import torch


def allocatable_bytes(device: torch.device) -> int | None:
    """Memory that PyTorch can still allocate on a GPU, with what its allocator holds unused; None on the CPU."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
