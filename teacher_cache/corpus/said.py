"""What is kept of a chat beside its rendered text (``schemas.chat_record``): messages, with texts as byte spans."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from schemas.chat_record import ChatMessage, ChatRecord
from teacher_cache.corpus.message_forms import SAID, THINKING, TRAINING_KEYS
from teacher_cache.corpus.template import Span

REASONING = tuple(key for key in SAID if key != "content")
_BLANKS = re.compile(r"\s*")
_TAGS = re.compile(r"\s*(?:(?:<[^<>]*>|\[[^\[\]]*\])\s*)+")

if TYPE_CHECKING:
    from teacher_cache.corpus.documents import Document


def chat_record(
    document: "Document", text: str, written: Mapping[int, Span], replies: Mapping[int, Span]
) -> ChatRecord:
    """The record of a rendered chat.

    written: character span of what the template wrote for each message. replies: those that are trained on, with their
    end of turn.
    """
    to_byte = _ByteOffsets(text)
    messages = []
    for number, message in enumerate(document.messages or []):
        fields = {key: value for key, value in message.items() if key not in ("role", *TRAINING_KEYS)}
        spans = {}
        reply = replies.get(number)
        first, last = reply or written.get(number, (0, 0))
        located = _in_reply(fields, text, first, last) if reply else _anywhere(fields, text, first, last)
        for key, found in located.items():
            spans[key] = found
            del fields[key]
        end = max((span[1] for span in spans.values()), default=last)
        messages.append(
            ChatMessage(
                role=message["role"],
                learned=reply is not None,
                closed=reply is not None and bool(text[end:last].strip()),
                spans={key: (to_byte(start), to_byte(stop)) for key, (start, stop) in spans.items()},
                fields=fields,
            )
        )
    kwargs = dict(document.template_kwargs)
    return ChatRecord(messages=messages, tools=document.tools, documents=document.documents, template_kwargs=kwargs)


def cut_record(record: ChatRecord, num_bytes: int) -> ChatRecord:
    """The record of the first ``num_bytes`` bytes of a rendering: what lies beyond is cut off."""
    messages = []
    for message in record.messages:
        spans = {key: (start, min(end, num_bytes)) for key, (start, end) in message.spans.items() if start < num_bytes}
        whole = spans == message.spans and all(end < num_bytes for _, end in spans.values())
        kept = {} if spans != message.spans else message.fields
        if not spans and message.spans:
            break
        messages.append(message.model_copy(update={"spans": spans, "closed": message.closed and whole, "fields": kept}))
        if not whole:
            break
    return record.model_copy(update={"messages": messages})


def _anywhere(fields: Mapping[str, Any], text: str, first: int, last: int) -> dict[str, Span]:
    """Where texts of a message that is not learned are: the last place, since a header may hold their words."""
    spans = {}
    for key in SAID:
        for form in _forms(fields.get(key)):
            if found := _last(form, text, first, last):
                spans[key] = found
                break
    return spans


def _in_reply(fields: Mapping[str, Any], text: str, first: int, last: int) -> dict[str, Span]:
    """Where the texts of a reply are: reasoning before content, neither of them inside the template's tags."""
    spans: dict[str, Span] = {}
    at = first
    for key in REASONING:
        if found := _located(fields.get(key), text, at, last):
            spans[key], at = found, found[1]
    content = _located(fields.get("content"), text, at, last)
    if content is None and spans:  # what was found is part of the content: the template drops reasoning
        content = _located(fields.get("content"), text, first, last)
        if content is not None:
            spans = {key: span for key, span in spans.items() if span[1] <= content[0]}
    return spans if content is None else {**spans, "content": content}


def _located(said: Any, text: str, first: int, last: int) -> Span | None:
    """Where a text is in ``text[first:last]``, as it is or in a form to which templates change it."""
    tags = _TAGS.match(text, first, last)
    for form in _forms(said):
        for begin in (first if tags is None else tags.end(), first):
            if found := _first(form, text, begin, last):
                return found
    return None


def _forms(said: Any) -> Iterator[list[str]]:
    """Forms of a text, as parts with blanks between: as it is, stripped, reasoning with other blanks, without it."""
    if not isinstance(said, str) or not said:
        return
    yield [said]
    if not said.strip():
        return
    yield [said.strip()]
    thinking = THINKING.fullmatch(said)
    if thinking is not None:
        reasoning, answer = thinking["reasoning"].strip(), thinking["answer"].strip()
        whole = [reasoning, "</think>", answer]
        for parts in (["<think>", *whole] if said.lstrip().startswith("<think>") else [], whole, [answer]):
            if found := [part for part in parts if part]:
                yield found


def _first(form: list[str], text: str, first: int, last: int) -> Span | None:
    """The first place of these parts."""
    at = text.find(form[0], first, last)
    while at >= 0:
        end = at + len(form[0])
        for part in form[1:]:
            begin = _BLANKS.match(text, end, last).end()  # type: ignore[union-attr]
            if not text.startswith(part, begin, last):
                break
            end = begin + len(part)
        else:
            return at, end
        at = text.find(form[0], at + 1, last)
    return None


def _last(form: list[str], text: str, first: int, last: int) -> Span | None:
    """The last place, of a form of one part."""
    if len(form) > 1:
        return _first(form, text, first, last)
    at = text.rfind(form[0], first, last)
    return None if at < 0 else (at, at + len(form[0]))


class _ByteOffsets:
    """Converts character offsets of a text to byte offsets of its UTF-8, quickly where they rise."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._character = self._byte = 0

    def __call__(self, character: int) -> int:
        if character < self._character:
            self._character = self._byte = 0
        self._byte += len(self._text[self._character : character].encode(errors="surrogatepass"))  # refused later
        self._character = character
        return self._byte
