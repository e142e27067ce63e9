"""Locate a reply in a rendered chat: from the end of the generation prompt to the end of its end-of-turn text.

The instrumented template (``template.py``) tells which text belongs to a message. The end of the generation prompt is
found by rendering the chat before the reply with that prompt. The end-of-turn text may be written later, with the next
message or after the whole chat; it is found by rendering the chat up to and including the reply. White space after the
end-of-turn text belongs to the template and is excluded.
"""

import re
from collections.abc import Mapping
from typing import Any

from teacher_cache.corpus.message_forms import Message, texts
from teacher_cache.corpus.template import GENERATION, ChatTemplate, Rendered, Span

PROBE = "\U00100000"  # private use area: no template treats it specially
_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_ATOM = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|.", re.DOTALL)  # a markup tag matches as a whole or not at all


class Turns:
    """A rendered chat and its turns. The constructor raises whatever the template raises."""

    def __init__(self, template: ChatTemplate, messages: list[Message], variables: Mapping[str, Any]) -> None:
        self._template = template
        self.messages = messages
        self._variables = variables
        self.rendered = _located(template, messages, variables)

    @property
    def text(self) -> str:
        """The rendered chat."""
        return self.rendered.text

    def written(self, number: int) -> str:
        """All text that the template wrote for a message."""
        return "".join(self.text[start:stop] for start, stop in self.rendered.owned.get(number, []))

    def written_spans(self) -> dict[int, Span]:
        """By message, from the first to the last character that the template wrote for it."""
        return {number: (owned[0][0], owned[-1][1]) for number, owned in self.rendered.owned.items() if owned}

    def spans(self, number: int, prompted: bool) -> list[Span]:
        """Character spans of the reply in message ``number``; ``prompted``: it follows a generation prompt."""
        owned = self.rendered.owned.get(number, [])
        if not owned:
            return []
        is_last = number == len(self.messages) - 1
        after = [(owned[-1][1], len(self.text))] if is_last else []
        if marked := _common([*owned, *after], self.rendered.generated):
            return marked
        begin = owned[0][0]
        start = self._prompt_end(number, owned) if prompted else None
        if start is None:
            start = begin + self._header_length(number, begin)
        stop = self._turn_end(number, begin, start, owned[-1][1])
        spans = _common([*owned, (owned[-1][1], stop)], [(start, stop)])
        if spans:
            first, _ = spans[-1]
            spans[-1] = first, self._without_blanks(number, first, stop)
        return [span for span in spans if span[0] < span[1]]

    def _prompt_end(self, number: int, owned: list[Span]) -> int | None:
        """End of a reply's generation prompt; None if the template has none."""
        if GENERATION not in self._template.names:
            return None
        begin, end = owned[0][0], owned[-1][1]
        prompt = self._render(self.messages[:number], **{GENERATION: True})
        prompt = prompt or self._render([{"role": "user", "content": PROBE}], **{GENERATION: True})
        asked_for = (
            [] if prompt is None else [prompt.text[min(prompt.asked, prompt.end()) :], prompt.text[prompt.asked :]]
        )
        asked_for = [asked for asked in asked_for if asked.strip()]
        if prompt is None or not asked_for:
            return None
        if self.text.startswith(prompt.text):
            return max(begin, len(prompt.text))
        longest = 0
        for asked in asked_for:
            shared, whole = _shared(asked, self.text[begin:end])
            if whole:
                return begin + shared
            # a prompt that also opens the reply (`<think>`): its header only
            longest = max(longest, min(shared, _shared(asked, self._plain_turn(number) or asked)[0]))
        return begin + longest

    def _plain_turn(self, number: int) -> str:
        """The text of a reply without reasoning that is not the last turn."""
        reply = {"role": self.messages[number]["role"], "content": PROBE}
        rendered = self._render([*self.messages[:number], reply, {"role": "user", "content": PROBE}])
        return "" if rendered is None else "".join(rendered.text[a:b] for a, b in rendered.owned.get(number, []))

    def _header_length(self, number: int, begin: int) -> int:
        """Length of the header before a message's content; 0 if it is only white space."""
        probed = [*self.messages]
        probed[number] = {"role": probed[number]["role"], "content": PROBE}
        rendered = self._render(probed)
        if rendered is None or number not in rendered.owned:
            return 0
        start, stop = rendered.owned[number][0]
        header, found, _ = rendered.text[start:stop].partition(PROBE)
        return len(header) if found and header.strip() and self.text.startswith(header, begin) else 0

    def _turn_end(self, number: int, begin: int, start: int, end: int) -> int:
        """End of the turn whose message spans ``begin`` to ``end`` and whose reply starts at ``start``."""
        if number == len(self.messages) - 1:
            rendered: Rendered | None = self.rendered
        else:
            rendered = self._render(self.messages[: number + 1])
        if rendered is None:
            return end
        closing = rendered.text[rendered.end() :].rstrip()
        if not closing.strip():
            return end + self._late_closing(number, start, end)
        if not self.text.startswith(closing, end) or re.search(r"\w", _MARKUP.sub("", closing)):
            return end
        is_header = self.text[begin:start].strip().startswith(closing.strip())
        if is_header and not self._closes(number, closing):  # some templates write a header after every chat
            return end
        return end + len(closing)

    def _late_closing(self, number: int, start: int, end: int) -> int:
        """Length of end-of-turn text written with the next message, only because a reply precedes that."""
        following = self.rendered.owned.get(number + 1)
        said = [text.rstrip() for _, text in texts(self.messages[number])]
        if not following or following[0][0] != end or not self.text[start:end].rstrip().endswith(tuple(said)):
            return 0
        first = number  # message of the turn, which may consist of several
        while first > 0 and self.messages[first - 1]["role"] == self.messages[number]["role"]:
            first -= 1
        without = self._render([*self.messages[:first], *self.messages[number + 1 :]])
        if without is None or not without.owned.get(first):
            return 0
        written, alone = (
            "".join(r.text[a:b] for a, b in r.owned[n][:1]) for r, n in ((self.rendered, number + 1), (without, first))
        )
        said_next = next((text for _, text in texts(self.messages[number + 1]) if text), "")
        header = alone.partition(said_next)[0] if said_next else alone
        return len(written.removesuffix(alone).rstrip()) if header.strip() and written.endswith(alone) else 0

    def _closes(self, number: int, closing: str) -> bool:
        """Whether ``closing`` also follows the turn when another message comes next."""
        followed = self._render([*self.messages[: number + 1], {"role": "user", "content": PROBE}])
        if followed is None or number not in followed.owned:
            return False
        return followed.text.startswith(closing, followed.owned[number][-1][1])

    def _without_blanks(self, number: int, start: int, stop: int) -> int:
        """End of a turn without trailing white space, unless the reply itself ends with it."""
        said = [text for _, text in texts(self.messages[number]) if text.strip()]
        ends = [at + len(text) for text in said if (at := self.text.rfind(text, start, stop)) >= 0]
        return max([start + len(self.text[start:stop].rstrip()), *ends])

    def _render(self, messages: list[Message], **variables: Any) -> Rendered | None:
        """Render another chat with the same variables; None if the template rejects it."""
        try:
            return _located(self._template, messages, {**self._variables, **variables})
        except Exception:  # a template is a program: it can raise anything
            return None


def _located(template: ChatTemplate, messages: list[Message], variables: Mapping[str, Any]) -> Rendered:
    """The chat with the spans of its messages, from marks if possible, else by comparing renderings of prefixes."""
    rendered = template.render(messages, **variables)
    if rendered is not None and rendered.owned:
        return rendered
    text = template.text(messages, **variables)
    owned: dict[int, list[Span]] = {}
    end = 0
    for number in range(len(messages)):
        try:
            part = template.text(messages[: number + 1], **{**variables, GENERATION: False})
        except Exception:  # as above
            break
        shared = len(part) if text.startswith(part) else _shared(part, text, blanks_may_differ=False)[0]
        if shared <= end:
            break
        owned[number] = [(end, shared)]
        end = shared
    return Rendered(text, owned, [], len(text))


def _shared(prompt: str, text: str, blanks_may_differ: bool = True) -> tuple[int, bool]:
    """Length of the common prefix of ``text`` and ``prompt``, and whether it covers all of ``prompt``."""
    length = 0
    for atom in _ATOM.findall(prompt):
        if text.startswith(atom, length):
            length += len(atom)
        elif not blanks_may_differ:
            return length, False
        elif not atom.isspace():
            indented = length + len(text[length:]) - len(text[length:].lstrip())
            if not text.startswith(atom, indented):
                return length, False
            length = indented + len(atom)
    return length, True


def _common(spans: list[Span], others: list[Span]) -> list[Span]:
    """Intersection of two span lists, with touching spans merged."""
    found: list[Span] = []
    for start, stop in spans:
        for first, last in others:
            a, b = max(start, first), min(stop, last)
            if a < b:
                found.append((found.pop()[0], b) if found and found[-1][1] == a else (a, b))
    return found
