"""Functions of rows of logits that ``torch.compile`` fuses into few passes over the vocabulary.

PyTorch's own operations make a pass and a float32 copy for every step. Where nothing can be compiled (no C++ compiler,
no Triton) the plain function runs, with one warning. Small vocabularies are not worth the seconds of compiling.

A single row is computed as one of two: sizes of 1 are compiled anew, and all rows must be rounded alike, whatever they
are scored with.
"""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

COMPILE_FROM = 8192  # vocabulary size; below, the few seconds of compiling do not pay
logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
_failed: set[Callable[..., Any]] = set()


def fused(what: str) -> Callable[[Function], Function]:
    """Compile a function of logits [N, V] and other tensors of N rows; ``what`` takes longer if that fails."""

    def decorate(plain: Function) -> Function:
        @wraps(plain)
        def function(logits_NV: torch.Tensor, *arguments: Any) -> Any:
            n_rows, vocabulary = logits_NV.shape
            if n_rows > 0 and vocabulary >= COMPILE_FROM and plain not in _failed:
                try:
                    if n_rows > 1:
                        return compiled_form(plain)(logits_NV, *arguments)
                    doubled = (
                        one.repeat(2, *[1] * (one.ndim - 1)) if isinstance(one, torch.Tensor) else one
                        for one in arguments
                    )
                    return tuple(part[:1] for part in compiled_form(plain)(logits_NV.repeat(2, 1), *doubled))
                except torch._dynamo.exc.TorchDynamoException as error:
                    _failed.add(plain)
                    reason = str(error).strip().partition("\n")[0][:200]
                    logger.warning("torch.compile failed (%s); %s take several times as long", reason, what)
            return plain(logits_NV, *arguments)

        return function  # type: ignore[return-value]

    return decorate


@cache
def compiled_form(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function, for any number of rows."""
    return torch.compile(plain, dynamic=True)
