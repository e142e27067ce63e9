"""What corpus readers yield: documents, and records that cannot be used."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from schemas.errors import UserError

Messages = list[dict[str, Any]]


class BadRecord(UserError):
    """One unusable record; reading continues after it. Readers yield it, the consumer raises or counts it.

    ``reason`` is the field of ``CorpusCounts`` that counts it.
    """

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class Document(NamedTuple):
    """One document as read: ``messages`` for a chat, otherwise ``text``.

    Messages are ``{role, content, …}`` with all other keys of the record (``weight``, ``train``, ``tool_calls``,
    ``reasoning_content``, …) except nulls. ``content`` is absent if it was null, which only messages with
    ``tool_calls`` may have.
    """

    source_id: str  # relative/name#record, records counted from 1
    where: str  # location for error messages
    mix_layer: str
    text: str
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = MappingProxyType({})
    prompt_chars: int = 0  # leading characters of `text` that are context only, not trained on


Record = tuple[str, str, Mapping[str, Any]]  # source id, location for error messages, fields


def brief(value: Any) -> str:
    """Type and truncated repr of a value, for error messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
