"""Load YAML configurations and JSON documents of the schemas, with actionable errors."""

import os
import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from schemas.bounded_yaml import parse_yaml
from schemas.errors import CorruptCacheError, UserError
from schemas.regular_files import read_file

PATHS = {"path", "chat_template", "scratch"}
"""Settings of a caching run that are paths or URLs. Manifests use the same models, but do not expand ``~``."""
MAX_KEYS = 20  # depth of an override's dotted key
MAX_POSITION_DIGITS = 9
MAX_SHOWN = 1 << 20  # bytes of the largest file whose invalid values are shown
MAX_KEYS_OF_OBJECT = 4096  # for instance, code tables of a merge
_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 40
_short.maxstring = _short.maxother = 100
Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path: str, overrides: tuple[str, ...] = ()) -> Model:
    """Load the YAML file ``path`` as ``model``; overrides, ``dotted.key=YAML value``, take precedence over the file.

    Raises UserError naming the file, the key, the value seen and the value wanted.
    """
    text = read_file(path, what="cannot read the configuration")
    tree = parse_yaml(text, f"{path}:", aliases=True)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a YAML mapping of settings, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return with_home(validate(model, tree, where=path))


def with_home(settings: Model) -> Model:
    """``settings`` with a leading ``~`` in paths expanded to the home folder."""
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changed[name] = with_home(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            changed[name] = [with_home(each) for each in value]
        elif name in PATHS and isinstance(value, str) and value.startswith("~"):
            changed[name] = os.path.expanduser(value)
    changed = {name: value for name, value in changed.items() if value != getattr(settings, name)}
    return settings.model_copy(update=changed) if changed else settings


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
    """Validate ``tree`` as ``model``. Raises UserError naming ``where``, and the first problem's key and values."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _to_user_error(error, where) from None


def parse_json(model: type[Model], data: bytes, where: str, max_values: int | None = None) -> Model:
    """Parse and validate JSON bytes of an untrusted file as ``model``. Raises UserError.

    ``max_values``: limit on the number of values; with millions, one error could take gigabytes to report.
    """
    if max_values is not None and (values := data.count(b",")) > max_values:
        raise UserError(f"{where}: about {values} values, at most {max_values} are allowed")
    if data.count(b":") > MAX_KEYS_OF_OBJECT:  # otherwise no object can have too many
        _check_keys(data, where)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _to_user_error(error, where, len(data) < MAX_SHOWN) from None


def parse_cache_file(model: type[Model], data: bytes, where: str, max_values: int | None = None) -> Model:
    """``parse_json`` for a file of a cache. Raises CorruptCacheError."""
    try:
        return parse_json(model, data, where, max_values)
    except UserError as error:
        raise CorruptCacheError(str(error)) from None


def _check_keys(data: bytes, where: str) -> None:
    """Raise UserError for objects with too many keys: each unknown one would take kilobytes to report."""
    try:
        found: list[Any] = [from_json(data)]
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None
    while found:
        tree = found.pop()
        if isinstance(tree, dict) and len(tree) > MAX_KEYS_OF_OBJECT:
            raise UserError(f"{where}: an object of {len(tree)} keys, at most {MAX_KEYS_OF_OBJECT} are allowed")
        parts = tree.values() if isinstance(tree, dict) else tree
        found += [part for part in parts if isinstance(part, dict | list)]


def _to_user_error(error: ValidationError, where: str, with_input: bool = True) -> UserError:
    problems = error.errors(include_url=False, include_input=with_input)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        wanted = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        return UserError(f"{where}: {key}: this key is required and missing{more}")
    else:
        wanted = first["msg"].removeprefix("Value error, ")
    got = f"; got {_shown(first['input'])}" if with_input else ""
    return UserError(f"{where}: {key + ': ' if key else ''}{wanted}{got}{more}")


def _shown(value: object) -> str:
    """A value's repr, truncated."""
    try:
        shown = repr(value[:80]) if isinstance(value, str | bytes) else _short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        shown = f"an {type(value).__name__} with too many digits"
    return shown if len(shown) <= 80 else shown[:77] + "..."
