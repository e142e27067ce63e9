"""Compile loops that numpy cannot express with numba; they run without the GIL."""

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
    """Compile ``function`` at its first call (a few seconds); cached on disk if a folder is writable."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no writable cache folder
        return numba.njit(nogil=True, error_model="numpy")(function)


@intrinsic
def load_word(typing: Any, bytes_N: Any, at: Any) -> Any:
    """Load the 8 bytes at ``at`` of a contiguous uint8 array as a little-endian uint64; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        word = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(word, align=1)

    return types.uint64(bytes_N, types.uint64), generate


@contextmanager
def refused_as_corrupt() -> Iterator[None]:
    """Convert a compiled decoder's ValueError(what, value seen, value wanted) to CorruptCacheError."""
    try:
        yield
    except ValueError as error:
        what, seen, wanted = error.args
        raise CorruptCacheError(f"{what}: {seen}, wanted {wanted}") from None
