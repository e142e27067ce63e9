"""Chat messages as people write them down, and the forms in which templates want them.

Records differ where templates are strict: ``content`` is null, absent, a string or a list of parts; arguments of a
tool call are an object or its JSON. The same message is therefore offered in several forms, the usual one first.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from schemas.errors import UserError
from teacher_cache.corpus.clean import clean_text

Message = dict[str, Any]
TRAINING_KEYS = ("weight", "train")  # for us, not for the template


class BadRecordError(UserError):
    """A record that cannot be cached; ``reason`` names the count in which it goes where such records are dropped."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def trained(messages: Sequence[Mapping[str, Any]], roles: Sequence[str], where: str) -> list[int]:
    """The numbers of the messages to train on: of ``roles``, unless ``weight`` or ``train`` of the message decide.

    ``train`` decides for any role; ``weight: 0`` leaves a message out. Raises BadRecordError for other values.
    """
    chosen = []
    for number, message in enumerate(messages):
        train, weight = message.get("train"), message.get("weight")
        if weight not in (None, 0, 1):
            raise BadRecordError(
                f"{where}: message {number}: weight is {weight!r}, expected 0 or 1: a reply counts or it does not",
                "malformed",
            )
        if train not in (None, 0, 1):
            raise BadRecordError(f"{where}: message {number}: train is {train!r}, expected true or false", "malformed")
        counts = message["role"] in roles if train is None else bool(train)
        if counts and weight != 0:
            chosen.append(number)
    return chosen


def is_blank(message: Mapping[str, Any]) -> bool:
    """Neither text nor a tool call."""
    return not message.get("tool_calls") and not any(text.strip() for _, text in texts(message))


def texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a message says: the texts of its content, and its other strings (``reasoning_content``, …) by name."""
    for key, value in message.items():
        if key == "content" and isinstance(value, list):
            yield from (("content", text) for part in value for text in _part_texts(part))
        elif isinstance(value, str) and key not in ("role", "name", "tool_call_id", "id"):
            yield key, value


def cleaned(value: Any) -> Any:
    """``value`` with every string in it cleaned."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, Mapping):
        return {key: cleaned(item) for key, item in value.items()}
    return value


def without_training_keys(message: Mapping[str, Any]) -> Message:
    """The message as the template gets it: without our keys, without an empty list of tool calls, content not null."""
    kept = {key: value for key, value in message.items() if key not in TRAINING_KEYS}
    if not kept.get("tool_calls", True):
        del kept["tool_calls"]
    if kept.get("content") is None:
        kept["content"] = ""
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [_with_arguments(call, _as_object) for call in calls]
    return kept


def as_string(message: Message, where: str) -> Message:
    """The message with the text parts of its content joined. Raises BadRecordError for parts that are not text."""
    if not isinstance(message["content"], list):
        return message
    for part in message["content"]:
        if not isinstance(part, str) and not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadRecordError(
                f"{where}: content of the {message['role']} message has a part of type {kind!r} that the chat template "
                "does not take; only text can be cached",
                "malformed",
            )
    return {**message, "content": "".join(text for part in message["content"] for text in _part_texts(part))}


def as_parts(message: Message) -> Message:
    """The message with its content as a list of parts."""
    content = message["content"]
    return message if isinstance(content, list) else {**message, "content": [{"type": "text", "text": content}]}


def forms(messages: list[Message]) -> Iterator[list[Message]]:
    """The same chat in the forms in which templates want tool calls, the usual one first."""
    yield messages
    if not any(message.get("tool_calls") for message in messages):
        return
    silent = [_silent_call(message) for message in messages]
    yield silent
    for form in (messages, silent):
        yield [_map_calls(message, _as_json) for message in form]


def arguments(call: Any) -> Any:
    """The arguments of a tool call, wherever they stand in it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return function.get("arguments") if isinstance(function, Mapping) else None


def _silent_call(message: Message) -> Message:
    """Null where a message calls tools and says nothing: some templates look for that."""
    return {**message, "content": None} if message.get("tool_calls") and not message["content"] else message


def _map_calls(message: Message, form: Callable[[Any], Any]) -> Message:
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_arguments(call, form) for call in message["tool_calls"]]}


def _with_arguments(call: Any, form: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"], form)}
    return {**call, "arguments": form(call.get("arguments"))} if "name" in call else call


def _as_object(value: Any) -> Any:
    """Arguments as an object: out of their JSON; none where there are none."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict) else value
    return value


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _part_texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping):
        yield from (value for key, value in part.items() if key != "type" and isinstance(value, str))
