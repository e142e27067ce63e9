"""Record shapes, named as in TRL and axolotl, and what is trained on in each.

| shape | fields | becomes | trained on |
|---|---|---|---|
| messages | `messages` | a chat | the assistant's messages |
| sharegpt | `conversations` (or `conversation`), of `from` and `value` | a chat | the assistant's messages |
| prompt_completion | `prompt`, `completion`: texts | their concatenation | the completion |
| | … or messages | a chat | the assistant's messages of the completion |
| alpaca | `instruction`, `input` (`context`), `output` (`response`) | a chat: instruction, input; output | the output |
| text | `text` | a text | all of it |

A record that fits several shapes is read as the first (unless ``SourceConfig.shape`` says otherwise), or the next if
its fields are null. Chats include the record's `tools`, `documents`, `chat_template_kwargs`, and `system`. Alpaca
becomes a chat, as in TRL's and axolotl's chat trainers, because that is how such teachers were trained; its `history`
is context only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.cache_config import SourceConfig
from teacher_cache.corpus.documents import BadRecord, Messages, brief
from teacher_cache.corpus.messages import from_json, read_messages, read_objects, without_nulls

_FOR_CHATS = ("system", "tools", "documents", "chat_template_kwargs")
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """One shape: ``required`` fields (each a tuple of alternative names), ``optional`` fields, and a reader.

    ``read`` returns the values of a Document's fields. It raises BadRecord for values of the wrong type.
    """

    name: str
    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[list[Any], Fields, str], dict[str, Any]]  # values of the required fields, record, location

    def required_names(self, names: Iterable[str]) -> list[str] | None:
        """The name among ``names`` of each required field; None if one is missing."""
        present = set(names)
        found = [next((name for name in either if name in present), None) for either in self.required]
        return None if None in found else found  # type: ignore[return-value]


def known_shapes(source: SourceConfig) -> list[Shape]:
    """The shapes that records of ``source`` may have; the first that fits wins."""
    messages, text = source.messages_field, source.text_field

    def read_chat(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
        return _chat(read_messages(values[0], messages, place), fields, place)

    def read_text(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
        return {"text": _string(values[0], text, place)}

    shapes = [
        Shape("messages", ((messages,),), _FOR_CHATS, read_chat),
        Shape("sharegpt", (("conversations", "conversation"),), _FOR_CHATS, _read_sharegpt),
        Shape("prompt_completion", (("prompt",), ("completion",)), _FOR_CHATS, _read_prompt_completion),
        Shape(
            "alpaca",
            (("instruction",), ("output", "response")),
            ("input", "context", "history", *_FOR_CHATS),
            _read_alpaca,
        ),
        Shape("text", ((text,),), (), read_text),
    ]
    return [shape for shape in shapes if source.shape in ("auto", shape.name)]


def prompt_shapes(source: SourceConfig) -> list[Shape]:
    """The shapes that prompts may have: those of ``known_shapes``, and of two of them without what is learned."""
    *shapes, text = [*known_shapes(source.model_copy(update={"shape": "auto"}))]
    prompts = [
        Shape("prompt_completion", (("prompt",),), _FOR_CHATS, _read_prompt),
        Shape("alpaca", (("instruction",),), ("input", "context", "history", *_FOR_CHATS), _read_instruction),
    ]
    return [shape for shape in (*shapes, *prompts, text) if source.shape in ("auto", shape.name)]


def _read_prompt(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
    (prompt,) = values
    if isinstance(prompt, str) and not any(fields.get(name) for name in _FOR_CHATS):
        return {"text": prompt}
    return _chat(_one_or_more(prompt, "user", "prompt", place), fields, place)


def _read_instruction(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
    return _read_alpaca([*values, None], fields, place)


def _read_sharegpt(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
    return _chat(read_messages(values[0], "conversations", place), fields, place)


def _read_prompt_completion(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
    prompt, completion = ("" if value is None else value for value in values)
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"text": prompt + completion, "prompt_chars": len(prompt)}
    asked = _one_or_more(prompt, "user", "prompt", place)
    return _chat(_unlearned(asked) + _one_or_more(completion, "assistant", "completion", place), fields, place)


def _read_alpaca(values: list[Any], fields: Fields, place: str) -> dict[str, Any]:
    instruction, output = (_string(v, f, place) for v, f in zip(values, ("instruction", "output"), strict=True))
    given = _string(fields.get("input") or fields.get("context"), "input", place)
    messages: Messages = []
    history = from_json(fields.get("history") or [], "history", place)
    for index, turn in enumerate(history if isinstance(history, list) else [history]):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)):
            raise BadRecord(f"{place}: history[{index}] is {brief(turn)}, expected [instruction, output]")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1], "train": False}]
    messages.append({"role": "user", "content": f"{instruction}\n{given}" if given.strip() else instruction})
    messages.append({"role": "assistant", "content": output})
    return _chat(messages, fields, place)


def _chat(messages: Messages, fields: Fields, place: str) -> dict[str, Any]:
    """A chat with the other fields of the record that its template may use."""
    system = _string(fields.get("system"), "system", place)
    if system and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    kwargs = fields.get("chat_template_kwargs") or {}
    kwargs = from_json(kwargs, "chat_template_kwargs", place) if isinstance(kwargs, str) else without_nulls(kwargs)
    if not isinstance(kwargs, dict):
        raise BadRecord(f"{place}: chat_template_kwargs is {brief(kwargs)}, expected an object")
    return {
        "messages": messages,
        "tools": read_objects(fields.get("tools"), "tools", place),
        "documents": read_objects(fields.get("documents"), "documents", place),
        "template_kwargs": kwargs,
    }


def _one_or_more(value: Any, role: str, field: str, place: str) -> Messages:
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    return read_messages(value, field, place)


def _unlearned(messages: Messages) -> Messages:
    return [{**message, "train": False} if message["role"] == "assistant" else message for message in messages]


def _string(value: Any, field: str, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"{place}: {field} is {brief(value)}, expected a string")
    return value
