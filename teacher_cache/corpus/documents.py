"""What reading a corpus gives: documents, and records that are none."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from schemas.errors import UserError

Messages = list[dict[str, Any]]


class BadRecord(UserError):
    """One record that cannot be used; the records after it can. Readers yield it, the consumer raises or counts it.

    ``reason`` is the count (of ``CorpusCounts``) in which it goes.
    """

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class Document(NamedTuple):
    """One document as it was read: ``messages`` for a chat, otherwise ``text``.

    Messages are ``{role, content, …}`` with every other key of the record (``weight``, ``train``, ``tool_calls``,
    ``reasoning_content``, …) and without nulls. ``content`` is absent where it was null, which only a message with
    ``tool_calls`` may have.
    """

    source_id: str  # relative/name#record, records counted from 1
    where: str  # place for error messages
    layer: str
    text: str
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = MappingProxyType({})
    prompt_chars: int = 0  # leading characters of `text` that are read and not learned


Record = tuple[str, str, Mapping[str, Any]]  # source id, place for error messages, fields


def brief(value: Any) -> str:
    """Type and beginning of a value, for error messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
