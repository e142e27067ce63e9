"""A chain of verification as the text of a reply: draft, questions, answers and final reply, each in its tags.

The parts are those of "Chain-of-Verification Reduces Hallucination in Large Language Models" (arXiv 2309.11495)::

    <draft>
    …
    </draft>
    <questions>
    Q1: …
    Q2: …
    </questions>
    <answers>
    A1: …
    A2: …
    </answers>
    <final>
    …
    </final>

Nothing but white space and a thought that ends in ``</think>`` may stand around them.
"""

import re
from typing import NamedTuple

CHAIN = "chain_of_verification"  # how a reply was made, if its answers were asked for without the draft
THOUGHT_END = "</think>"
PARTS = ("draft", "questions", "answers", "final")
_TAGS = tuple(tag for part in PARTS for tag in (f"<{part}>", f"</{part}>"))
_ITEM = re.compile(r"^([QA])(\d+):", re.MULTILINE)


class Chain(NamedTuple):
    """The parts, without white space around them; as many answers as questions."""

    draft: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    final: str

    def text(self) -> str:
        """The reply that ``parse_chain`` reads, if no part holds a tag or what looks like the beginning of an item."""
        contents = (self.draft, numbered(self.questions, "Q"), numbered(self.answers, "A"), self.final)
        return "\n".join(f"<{name}>\n{content}\n</{name}>" for name, content in zip(PARTS, contents, strict=True))


def numbered(items: tuple[str, ...], letter: str) -> str:
    """One item a paragraph: ``Q1: …``."""
    return "\n".join(f"{letter}{number}: {item}" for number, item in enumerate(items, 1))


def parse_chain(reply: str) -> Chain | None:
    """The parts of a reply; None unless all are there, in order, with as many answers as questions, none empty."""
    rest = reply.rpartition(THOUGHT_END)[2]
    parts = []
    for name in PARTS:
        before, opened, rest = rest.partition(f"<{name}>")
        part, closed, rest = rest.partition(f"</{name}>")
        if before.strip() or not (opened and closed and part.strip()) or any(tag in part for tag in _TAGS):
            return None
        parts.append(part.strip())
    draft, asked, answered, final = parts
    questions, answers = _items(asked, "Q"), _items(answered, "A")
    if rest.strip() or not questions or len(questions) != len(answers):
        return None
    return Chain(draft, questions, answers, final)


def _items(text: str, letter: str) -> tuple[str, ...]:
    """The items of a list that is numbered from 1 without gaps; none if it is not, or if one is empty."""
    _, *found = _ITEM.split(text)
    letters, numbers, items = found[::3], found[1::3], tuple(item.strip() for item in found[2::3])
    whole = text.startswith(f"{letter}1:") and {*letters} == {letter} and all(items)
    return items if whole and numbers == [str(n) for n in range(1, len(items) + 1)] else ()
