"""Plain Python values as lines of JSON, between two processes that do not trust each other.

Subclasses arrive as their plain class: a Counter as a dict, a scalar of NumPy as a number. What has no plain form is
refused, so that no object arrives that could say it equals everything.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_MADE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda parts: dict(zip(parts[::2], parts[1::2], strict=True)),
    "bytes": lambda parts: bytes.fromhex(parts[0]),
    "bytearray": lambda parts: bytearray.fromhex(parts[0]),
    "complex": lambda parts: complex(*parts),
    "Decimal": lambda parts: Decimal(parts[0]),
    "Fraction": lambda parts: Fraction(parts[0]),
}


def to_line(value: Any) -> bytes:
    """A value as one line. Raises TypeError for what is not plain, RecursionError for what holds itself."""
    return json.dumps(_tagged(value)).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """The value of a line that came from anyone. Raises ValueError, TypeError, RecursionError or ArithmeticError."""
    return _untagged(json.loads(line))


def _tagged(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if value is None or value is True or value is False:
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    for parts in (list, tuple, set, frozenset):
        if isinstance(value, parts):
            return [parts.__name__, *map(_tagged, value)]
    if isinstance(value, dict):
        return ["dict", *(_tagged(part) for item in value.items() for part in item)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, Decimal | Fraction):
        return [type(value).__name__, str(value)]
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _untagged(tree: Any) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *parts = tree
    return _MADE[kind]([_untagged(part) for part in parts])
