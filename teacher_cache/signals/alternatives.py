"""Other settings of a signal, so that estimates can say what it would take under them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

LEAST_ENTRIES = 4


class Alternative(NamedTuple):
    """One setting of a side signal changed."""

    setting: str  # as ``field=value``
    settings: Any
    recaptured: Callable[[Any], Any]  # what a sample would have been captured as


def halves(n: int) -> Iterator[int]:
    """Half of ``n``, a quarter, and so on."""
    while (n := n // 2) >= LEAST_ENTRIES:
        yield n


def other_values(model: type[BaseModel], field: str, present: str) -> Iterator[str]:
    """The other values that a field of a settings model may have, one of a list of words."""
    return (value for value in get_args(model.model_fields[field].annotation) if value != present)
