"""Tensors that count what would make the host wait for a GPU: on a CPU nothing does."""

from typing import Any

import torch

BLOCKING = {
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.nonzero,
    torch.nonzero,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.__array__,
    torch.masked_select,
    torch.unique,
    torch.repeat_interleave,
}


class DeviceTensor(torch.Tensor):
    """A CPU tensor that stands for one on a device, as do all results of operations on it."""

    waits = 0  # blocking operations so far
    copies = 0  # tensors downloaded without waiting

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        given = [one for one in arguments if isinstance(one, torch.Tensor)]
        blocking = function in BLOCKING or _indexes_with_a_mask(function, arguments)
        downloads = function is torch.Tensor.copy_ and not isinstance(given[0], cls)
        if blocking or (downloads and not named.get("non_blocking")):
            cls.waits += 1
        elif downloads:
            cls.copies += 1
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*arguments, **named)
        return _plain(result) if blocking or downloads else _on_device(result, cls)


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one on a device."""
    return tensor.as_subclass(DeviceTensor)


def _indexes_with_a_mask(function: Any, arguments: Any) -> bool:
    if function is not torch.Tensor.__getitem__:
        return False
    index = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in index)


def _on_device(result: Any, kind: type[torch.Tensor]) -> Any:
    if isinstance(result, torch.Tensor):
        return result if isinstance(result, torch.nn.Parameter) else result.as_subclass(kind)
    if isinstance(result, list | tuple):
        values = [_on_device(one, kind) for one in result]
        return type(result)(values)
    return result


def _plain(result: Any) -> Any:
    return result.as_subclass(torch.Tensor) if isinstance(result, DeviceTensor) else result
