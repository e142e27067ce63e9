"""What is kept of a chat beside its rendered text (``schemas.chat_record``): messages, with texts as byte spans."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from schemas.chat_record import ChatMessage, ChatRecord
from teacher_cache.corpus.message_forms import SAID, THINKING, TRAINING_KEYS
from teacher_cache.corpus.template import Span

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
        for key in SAID:
            found = _located(fields.get(key), text, first, last, from_the_end=reply is None)
            if found is not None:
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


def _located(said: Any, text: str, first: int, last: int, from_the_end: bool) -> Span | None:
    """Where a text is in ``text[first:last]``, as it is or without the blanks and the reasoning that templates drop.

    from_the_end: a header before the text may hold its words.
    """
    if not isinstance(said, str):
        return None
    for form in _forms(said):
        at = text.rfind(form, first, last) if from_the_end else text.find(form, first, last)
        if form and at >= 0:
            return at, at + len(form)
    return None


def _forms(said: str) -> Iterator[str]:
    yield said
    yield said.strip()
    thinking = THINKING.fullmatch(said)
    if thinking is not None:
        yield thinking["answer"].strip()


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
