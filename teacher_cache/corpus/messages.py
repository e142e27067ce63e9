"""Normalize chat messages (OpenAI, ShareGPT, content parts, JSON strings) to ``{role, content, …}``.

All other keys of a message are kept, except nulls. Columnar formats give every object the union of all keys, filled
with nulls; such nulls are removed at any depth, also from JSON lines, so that both formats agree. In values given as a
JSON string, nulls are the author's own and are kept (below the message's top-level keys).
"""

import json
from typing import Any

from teacher_cache.corpus.documents import BadRecord, Messages, brief

_ROLES = {  # ShareGPT's `from`, and older names
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    "system": "system",
}
_TEXT_PARTS = {None, "text", "input_text", "output_text"}


def read_messages(value: Any, field: str, place: str) -> Messages:
    """The messages of a record's ``field``. Raises BadRecord, naming ``place``, for anything else."""
    messages = from_json(value, field, place)
    if not isinstance(messages, list):
        raise BadRecord(f"{place}: {field} is {brief(messages)}, expected a list of {{role, content}}")
    if value is messages:
        messages = without_nulls(messages)
    return [read_message(message, f"{place}: {field}[{index}]") for index, message in enumerate(messages)]


def read_objects(value: Any, field: str, place: str) -> list[dict[str, Any]] | None:
    """A list of objects (tools, documents), itself or its items maybe JSON; None if empty. Raises BadRecord."""
    items = from_json(value, field, place) if value else None
    if not items:
        return None
    if not isinstance(items, list):
        raise BadRecord(f"{place}: {field} is {brief(items)}, expected a list of objects")
    objects = []
    for i, item in enumerate(items):
        if isinstance(item, str):
            item = from_json(item, f"{field}[{i}]", place)
        elif items is value:
            item = without_nulls(item)
        if not isinstance(item, dict):
            raise BadRecord(f"{place}: {field}[{i}] is {brief(item)}, expected an object")
        objects.append(item)
    return objects


def from_json(value: Any, field: str, place: str) -> Any:
    """``value``, parsed as JSON if it is a string. Raises BadRecord if that fails."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{place}: {field} is {brief(value)}, which is not JSON: {error}") from None


def without_nulls(value: Any) -> Any:
    """``value`` without null-valued object keys, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def read_message(message: Any, place: str) -> dict[str, Any]:
    """One message, without null-valued keys. Raises BadRecord."""
    if not isinstance(message, dict):
        raise BadRecord(f"{place} is {brief(message)}, expected {{role, content}}")
    message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, place)
    if not isinstance(message.get("role"), str):
        raise BadRecord(f"{place}.role is {brief(message.get('role'))}, expected a string")
    if "function_call" in message and "tool_calls" not in message:  # OpenAI's older form
        message["tool_calls"] = [message.pop("function_call")]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], place)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _joined(content, place)
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise BadRecord(f"{place}.content is {brief(content)}, expected a string")
    return message


def _from_sharegpt(message: dict[str, Any], place: str) -> dict[str, Any]:
    message = dict(message)
    role, value = message.pop("from"), message.pop("value", None)
    if role == "function_call":
        return {"role": "assistant", "tool_calls": value, **message}
    if role not in _ROLES:
        raise BadRecord(f"{place}.from is {brief(role)}, expected one of {', '.join(_ROLES)}, function_call")
    return {"role": _ROLES[role], "content": value, **message}


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Calls as ``{type, function: {name, arguments}}``; arguments that are JSON of an object are parsed."""
    calls = from_json(calls, "tool_calls", place)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord(f"{place}.tool_calls is {brief(calls)}, expected a list of {{function: {{name, arguments}}}}")
    return [_tool_call(call, place) for call in calls]


def _tool_call(call: dict[str, Any], place: str) -> dict[str, Any]:
    call = call if "function" in call else {"type": "function", "function": call}
    function = call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{place}.tool_calls holds {brief(function)}, expected {{name, arguments}}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            call = {**call, "function": {**function, "arguments": parsed}}
    return call


def _joined(parts: list[Any], place: str) -> str:
    """Concatenate content parts, all of which must be text."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            what = f"of type {kind!r}" if kind not in _TEXT_PARTS else brief(part)
            raise BadRecord(f"{place}.content[{index}] is {what}, expected text: teachers take text only")
        texts.append(text)
    return "".join(texts)
