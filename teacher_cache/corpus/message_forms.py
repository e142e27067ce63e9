"""Equivalent forms of a chat's messages, for templates that expect different ones.

Templates disagree on three points: whether a message that only calls tools has empty or null content, whether content
is a string or a list of parts, and whether call arguments are an object or its JSON. So the same chat is tried in
several forms, the most common first.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from teacher_cache.corpus.documents import BadRecord

Message = dict[str, Any]
TRAINING_KEYS = ("weight", "train")  # read by this package, not passed to the template
THINKING = re.compile(r"(?:\s*<think>)?(?P<reasoning>.*)</think>(?P<answer>.*)", re.DOTALL)
SAID = ("content", "reasoning_content", "reasoning", "thinking")


def trained(messages: Sequence[Mapping[str, Any]], roles: Sequence[str], where: str) -> list[int]:
    """Indices of the messages to train on: those of ``roles``, unless the message's ``weight`` or ``train`` overrides.

    ``train`` overrides the role; ``weight: 0`` excludes a message. Raises BadRecord for other values.
    """
    chosen = []
    for number, message in enumerate(messages):
        train, weight = message.get("train"), message.get("weight")
        if weight not in (None, 0, 1):
            raise BadRecord(
                f"{where}: message {number}: weight is {weight!r}, expected 0 or 1 (fractions are not supported)"
            )
        if train not in (None, 0, 1):
            raise BadRecord(f"{where}: message {number}: train is {train!r}, expected true or false")
        counts = message["role"] in roles if train is None else bool(train)
        if counts and weight != 0:
            chosen.append(number)
    return chosen


def is_blank(message: Mapping[str, Any]) -> bool:
    """Whether a message has neither text nor a tool call."""
    return not message.get("tool_calls") and not any(text.strip() for _, text in texts(message))


def texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, text) of a message's content (a string, or text parts) and reasoning."""
    for key in SAID:
        value = message.get(key)
        parts = (
            [part.get("text") for part in value if isinstance(part, Mapping)] if isinstance(value, list) else [value]
        )
        for text in parts:
            if isinstance(text, str):
                yield key, text


def without_training_keys(message: Mapping[str, Any]) -> Message:
    """The message as passed to the template: no training keys, no empty tool call list, no null content."""
    kept = {key: value for key, value in message.items() if key not in TRAINING_KEYS}
    if not kept.get("tool_calls", True):
        del kept["tool_calls"]
    if kept.get("content") is None:
        kept["content"] = ""
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [_with_arguments(call, lambda given: given) for call in calls]
    return kept


def as_parts(message: Message) -> Message:
    """The message with its content as a list of text parts."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def forms(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the same chat in the forms that templates expect, the most common first."""
    yield messages
    if any(message.get("tool_calls") for message in messages):
        silent = [_silent_call(message) for message in messages]
        yield silent
        for form in (messages, silent):
            yield [_map_calls(message, _as_json) for message in form]
    if all(isinstance(message["content"], str) for message in messages):
        yield [as_parts(message) for message in messages]


def arguments(call: Mapping[str, Any]) -> Any:
    """The arguments of a tool call; an empty object if it has none."""
    return call["function"].get("arguments") or {}


def _silent_call(message: Message) -> Message:
    """The message with null content if it only calls tools: some templates test for that."""
    return {**message, "content": None} if message.get("tool_calls") and not message["content"] else message


def _map_calls(message: Message, form: Callable[[Any], Any]) -> Message:
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_arguments(call, form) for call in message["tool_calls"]]}


def _with_arguments(call: Mapping[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": form(arguments(call))}}


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
