"""Compiled loops, outside Python's lock: for what numpy has no pass for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numba

from schemas.errors import CorruptCacheError

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile when first called, a few seconds' work; the result is kept on disk where there is a folder for it."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(nogil=True, error_model="numpy")(function)


@contextmanager
def refused_as_corrupt() -> Iterator[None]:
    """Turn a compiled decoder's ValueError(what, value seen, value wanted) into a CorruptCacheError."""
    try:
        yield
    except ValueError as error:
        what, seen, wanted = error.args
        raise CorruptCacheError(f"{what}: {seen}, wanted {wanted}") from None
