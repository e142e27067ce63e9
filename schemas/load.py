"""Reading YAML configurations and JSON documents of the contract, with errors that a user can act on."""

import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import UserError
from schemas.files import read_file
from schemas.foreign import parse_yaml

MAX_KEYS = 20  # of one override, from the outermost group to the setting
MAX_POSITION_DIGITS = 9
_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 40
_short.maxstring = _short.maxother = 100
Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path: str, overrides: tuple[str, ...] = ()) -> Model:
    """Read the YAML file ``path`` as ``model``; each override is ``dotted.key=YAML value`` and wins over the file.

    Raises UserError naming the file, the key, the value seen and the value wanted.
    """
    text = read_file(path, what="cannot read the configuration")
    tree = parse_yaml(text, f"{path}:", aliases=True)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a YAML mapping of settings, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return validate(model, tree, where=path)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) > MAX_KEYS:
        raise UserError(f"--set {override}: expected dotted.key=value, for example --set output.path=/data/cache")
    value = parse_yaml(text, f"--set {override}: the value is")
    node: Any = tree
    for key in keys[:-1]:
        node = _step(node, key, override)
    last = keys[-1]
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _step(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_position(node, key, override)]
    else:
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
    if not isinstance(child, dict | list):
        raise UserError(f"--set {override}: {key} is {child!r} in the file, not a group of settings")
    return child


def _position(node: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or len(key) > MAX_POSITION_DIGITS or int(key) >= len(node):
        raise UserError(f"--set {override}: {key!r} is not an index into a list of {len(node)} entries")
    return int(key)


def validate(model: type[Model], tree: object, where: str) -> Model:
    """Validate ``tree`` as ``model``; UserError names ``where``, and for the first problem the key and values."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _to_user_error(error, where) from None


def parse_json(model: type[Model], data: bytes, where: str) -> Model:
    """Parse and validate JSON bytes of an untrusted file as ``model``; raises UserError."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _to_user_error(error, where) from None


def _to_user_error(error: ValidationError, where: str) -> UserError:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        wanted = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        return UserError(f"{where}: {key}: this key is required and missing{more}")
    else:
        wanted = first["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {key + ': ' if key else ''}{wanted}; got {_shown(first['input'])}{more}")


def _shown(value: object) -> str:
    """The beginning of a value, however large it is."""
    try:
        shown = repr(value[:80]) if isinstance(value, str | bytes) else _short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        shown = f"an {type(value).__name__} of very many digits"
    return shown if len(shown) <= 80 else shown[:77] + "..."
