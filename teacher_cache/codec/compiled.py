"""Compiled loops, outside Python's lock: for what numpy has no pass for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from schemas.errors import CorruptCacheError

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile when first called, a few seconds' work; the result is kept on disk where there is a folder for it."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(nogil=True, error_model="numpy")(function)


@intrinsic
def load_word(typing: Any, bytes_N: Any, at: Any) -> Any:
    """The 8 bytes from ``at`` on of a contiguous uint8 array, as one little-endian number: they must be there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        word = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(word, align=1)

    return types.uint64(bytes_N, types.uint64), generate


@contextmanager
def refused_as_corrupt() -> Iterator[None]:
    """Turn a compiled decoder's ValueError(what, value seen, value wanted) into a CorruptCacheError."""
    try:
        yield
    except ValueError as error:
        what, seen, wanted = error.args
        raise CorruptCacheError(f"{what}: {seen}, wanted {wanted}") from None
