"""Alternative settings of a signal, for estimates of its size under them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

LEAST_ENTRIES = 4


class Alternative(NamedTuple):
    """Settings of a side signal with one of them changed."""

    setting: str  # as ``field=value``
    settings: Any
    recaptured: Callable[[Any], Any]  # convert a sample to what these settings would capture


def halves(n: int) -> Iterator[int]:
    """``n`` / 2, ``n`` / 4, …, down to LEAST_ENTRIES."""
    while (n := n // 2) >= LEAST_ENTRIES:
        yield n


def other_values(model: type[BaseModel], field: str, present: str) -> Iterator[str]:
    """Values other than ``present`` of a settings field that is a Literal."""
    return (value for value in get_args(model.model_fields[field].annotation) if value != present)
