"""A record on its way through the steps: a document of a corpus, or a generated reply with its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from teacher_cache.corpus.curated_records import Generated
from teacher_cache.corpus.documents import Document, Messages
from teacher_cache.corpus.message_forms import SAID, texts, trained

__all__ = ["Flag", "Generated", "Record", "of_document", "of_reply"]

Flag = bool | int | float | str
ROLES = ("assistant",)
BETWEEN = "\n\n"  # texts of a record that are joined


@dataclass(frozen=True)
class Record:
    """One record. Steps judge ``prompt`` and ``reply``; what is written in the end is ``content``.

    ``flags`` are what steps found out about it (a score, whether its code parses); they stay with the record.
    """

    number: int  # in the input, from 0
    source: int  # index of its source in the configuration
    content: Document | Generated
    prompt: str  # texts that are context only, joined by blank lines
    reply: str  # texts that are learned: of a chat the assistant's, of plain text all
    n_tokens: int = 0  # tokens that count: those of ``reply``, and one for the end of each learned message
    flags: Mapping[str, Flag] = field(default_factory=dict)

    @property
    def source_id(self) -> str:
        """Where it came from: file#record, of a generated one with the reply's number."""
        if isinstance(self.content, Document):
            return self.content.source_id
        return f"{self.content.prompt.source_id}/{self.content.reply.sample}"

    @property
    def layer(self) -> str:
        """Layer of the data mix."""
        return self.content.mix_layer if isinstance(self.content, Document) else self.content.prompt.layer

    @property
    def messages(self) -> Messages | None:
        """The chat with its replies; None for plain text."""
        if isinstance(self.content, Document):
            return self.content.messages
        if self.content.chat is None:
            return None
        return [*self.content.chat, {"role": "assistant", "content": self.content.reply.reply}]

    @property
    def ids(self) -> np.ndarray | None:
        """Token ids of a generated reply, uint32 [n_tokens]; None for records that the tokenizer has yet to read."""
        return None if isinstance(self.content, Document) else self.content.reply.reply_ids

    def with_flags(self, **flags: Flag) -> "Record":
        """The record with these flags added."""
        return replace(self, flags={**self.flags, **flags})

    def rewritten(self, change: Callable[[str], str]) -> "Record":
        """The record with each of its texts changed; itself if none differs. ``n_tokens`` is for the job to count.

        Raises TypeError for generated replies: their token ids are what is learned.
        """
        if not isinstance(self.content, Document):
            raise TypeError("the text of a generated reply cannot be changed: its token ids are learned")
        content = _rewritten(self.content, change)
        return (
            self
            if content == self.content
            else replace(of_document(content, self.number, self.source), flags=self.flags)
        )


def of_document(document: Document, number: int = 0, source: int = 0, roles: Sequence[str] = ROLES) -> Record:
    """The record of a document; ``roles``: whose messages are learned. Raises BadRecord for faulty weights."""
    if document.messages is None:
        cut = document.prompt_chars
        return Record(number, source, document, document.text[:cut], document.text[cut:])
    learned = set(trained(document.messages, roles, document.where))
    said: dict[bool, list[str]] = {False: [], True: []}
    for index, message in enumerate(document.messages):
        said[index in learned] += [text for _, text in texts(message)]
    return Record(number, source, document, BETWEEN.join(said[False]), BETWEEN.join(said[True]))


def of_reply(content: Generated, number: int = 0, source: int = 0) -> Record:
    """The record of a generated reply."""
    prompt = content.prompt.prompt
    if content.chat is not None:
        prompt = BETWEEN.join(text for message in content.chat for _, text in texts(message))
    return Record(number, source, content, prompt, content.reply.reply, len(content.reply.reply_ids))


def _rewritten(document: Document, change: Callable[[str], str]) -> Document:
    if document.messages is not None:
        return document._replace(messages=[_message(message, change) for message in document.messages])
    prompt = change(document.text[: document.prompt_chars]) if document.prompt_chars else ""
    return document._replace(text=prompt + change(document.text[document.prompt_chars :]), prompt_chars=len(prompt))


def _message(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The message with its texts changed, those that ``message_forms.texts`` yields."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [
                {**part, "text": change(part["text"])}
                if isinstance(part, Mapping) and isinstance(part.get("text"), str)
                else part
                for part in value
            ]
        return value

    return {key: changed(value) if key in SAID else value for key, value in message.items()}
