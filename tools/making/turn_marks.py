"""What a chat template writes around the texts of messages, learned from its renderings of known texts.

Between two texts of a rendered chat lies what the template writes: the end of a turn and the header of the next, or
only the end of a reasoning. Chats of up to four messages are rendered whose texts are single characters that occur
nowhere else, and what lies between them is collected. A template may write more than one form (an empty reasoning in
the last turn), so there can be several for the same two texts. Nothing is assumed of templates; whether a text is
understood is for ``unrender`` to prove.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from schemas.errors import UserError
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.message_forms import SAID

ROLES = ("user", "assistant", "tool")
FIRST_ROLES = ("system", "developer")
ORDER = ("user", "assistant", *FIRST_ROLES, "tool")  # where two roles are written alike, the first counts
LEAST_WORDS = 8  # characters of a text that is taken for the template's
MOST_AFTER_FIRST = 3  # messages of a chat that is rendered
_CONTENT, _REASONING = 0x10F000, 0x10F800  # private use area: one character per message
_MARKUP = re.compile(r"<[^<>\s]{1,40}>|\[[A-Z_/]{2,40}\]")


class Said(NamedTuple):
    """One text of a message."""

    role: str
    key: str


class Mark(NamedTuple):
    """What the template writes before the next text."""

    literal: bytes
    said: Said | None  # the text that follows; None: the chat ends
    opens: bool  # whether that is the first text of its message


class TurnMarks:
    """The marks of a chat template."""

    def __init__(self, renderer: ChatRenderer, source: str) -> None:
        """``source``: the template. Raises UserError if it cannot be used at all (a syntax error)."""
        self._renderer = renderer
        self.reasoning = next((key for key in SAID[1:] if self._writes(key)), None)
        found: dict[Said | None, set[Mark]] = {}
        for messages in self._chats():
            for before, mark in self._between(messages):
                found.setdefault(before, set()).add(mark)
        # Longer marks first: they say more.
        self.after = {before: sorted(marks, key=_priority) for before, marks in found.items()}
        self._patterns = {before: _pattern(marks) for before, marks in self.after.items()}
        self.of_tools = self._marks_of_tools(source)
        between = {mark.literal.strip() for before in found if before for mark in found[before] if mark.said}
        self.of_turns = {literal for literal in between if len(literal) >= LEAST_WORDS}

    def next(self, before: Said, text: bytes, start: int) -> tuple[int, Mark] | None:
        """The first mark after ``start`` that can follow this text, and where it begins; None if there is none."""
        match = self._patterns[before].search(text, start) if before in self._patterns else None
        if match is None or match.lastindex is None:
            return None
        return match.start(), self.after[before][match.lastindex - 1]

    def _chats(self) -> Iterator[list[dict[str, Any]]]:
        reply = [] if self.reasoning is None else [("assistant", self.reasoning)]
        kinds = [*((role, None) for role in ROLES), *reply]
        for first in ((), *(((role, None),) for role in FIRST_ROLES)):
            for length in range(0 if first else 1, MOST_AFTER_FIRST + 1):
                for rest in itertools.product(kinds, repeat=length):
                    yield _messages([*first, *rest])

    def _between(self, messages: list[dict[str, Any]]) -> Iterator[tuple[Said | None, Mark]]:
        """What lies between the texts of a chat; nothing if the template refuses it, or leaves out or moves a text."""
        text = self._rendered(messages)
        places = []
        for number, message in enumerate(messages):
            for key in SAID:
                count = text.count(message[key]) if key in message else 0
                if count == 1:
                    places.append((text.index(message[key]), number, Said(message["role"], key)))
                elif count > 1 or (key == "content" and key in message):
                    return
        if [number for _, number, _ in places] != [number for _, number, _ in sorted(places)]:
            return
        before, at, owner = None, 0, -1
        for place, number, said in sorted(places):
            literal = text[at:place].encode()
            if before is None or literal.strip():  # blanks alone tell no texts apart
                yield before, Mark(literal, said, number != owner)
            before, at, owner = said, place + 1, number
        yield before, Mark(text[at:].encode(), None, False)

    def _marks_of_tools(self, source: str) -> set[bytes]:
        """Texts that the template writes for tools only: markup, the first before definitions, the longest of calls."""
        name, key, value = (chr(_REASONING + number) for number in range(100, 103))
        function = {"name": name, "description": value, "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}] if "tools" in source else None
        calls = [{"id": "callaaaa1", "type": "function", "function": {"name": name, "arguments": {key: value}}}]
        user, reply = _messages([("user", None), ("assistant", None)])
        calling = reply | ({"content": "", "tool_calls": calls} if "tool_calls" in source else {})
        plain = self._rendered([user, reply])
        known = plain + "".join(mark.literal.decode() for marks in self.after.values() for mark in marks)
        found: set[str] = set()
        definitions, called = self._rendered([user, reply], tools), self._rendered([user, calling], tools)
        for text in (definitions, called):
            parts = (part.strip() for part in re.split(r"[\n\U0010f000-\U0010ffff]", text))
            new = [part for part in parts if len(part) >= LEAST_WORDS and part not in known]
            found.update(mark for mark in _MARKUP.findall(text) if mark not in known)
            if new:
                found.add(new[0] if text is definitions else max(new, key=len))
            known += text
        return {mark.encode() for mark in found}

    def _writes(self, key: str) -> bool:
        user, reply = _messages([("user", None), ("assistant", key)])
        return self._rendered([user, reply]).count(reply[key]) == 1

    def _rendered(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return self._renderer.render(Document("", "a chat of known texts", "", "", messages, tools)).text
        except UserError:  # the template refuses it
            return ""


def _messages(kinds: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """Messages of these roles, the second of each pair naming the reasoning's key if it has one; none is trained on."""
    return [
        {"role": role, "content": chr(_CONTENT + number), "train": False}
        | ({} if key is None else {key: chr(_REASONING + number)})
        for number, (role, key) in enumerate(kinds)
    ]


def _priority(mark: Mark) -> tuple[int, int, str, bytes]:
    role, key = mark.said or ("", "")
    return -len(mark.literal), ORDER.index(role) if role else -1, key, mark.literal


def _pattern(marks: list[Mark]) -> re.Pattern[bytes]:
    """One group per mark, in their order; at equal places the first one wins."""
    return re.compile(
        b"|".join(b"(" + re.escape(mark.literal) + (rb"\Z" if mark.said is None else b"") + b")" for mark in marks)
    )
