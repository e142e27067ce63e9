"""Independent check that a chat was rendered and masked correctly.

The judge renders with ``apply_chat_template`` alone. It knows every word of the chat, hence which must be in the mask;
where renderings of the chat's prefixes are prefixes of the full text, it knows each turn's first and last character;
and where a template has ``{% generation %}`` marks, the mask that transformers derives from them is the reference.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.support.chat_shapes import WORD, Message, Shape, words

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
_HEADER = re.compile(r"assistant|chatbot|response:|\bmodel\b|\bbot\b", re.IGNORECASE)
_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_ATOM = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|.", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """``right``, ``refused`` (correctly) or ``wrong``, with the reason."""

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Answer:
    """The result under test: a chat's text and loss mask, or the reason for refusing it."""

    text: str = ""
    mask: np.ndarray | None = None  # bool [bytes]
    cut_replies: int = 0
    refusal: str | None = None


class Judge:
    """The judge of one chat under one template."""

    def __init__(self, tokenizer: Any, shape: Shape) -> None:
        self._tokenizer = tokenizer
        self._shape = shape
        self._extras = {key: value for key, value in shape.record.items() if key != "chat_template_kwargs"}
        self._extras |= shape.record.get("chat_template_kwargs", {})

    def judge(self, answer: Answer) -> Verdict:
        """The verdict, with the first fault found."""
        references = {text: form for form in _forms(self._shape.messages) if (text := self._render(form)) is not None}
        if answer.refusal is not None:
            return self._judge_refusal(answer.refusal, list(references))
        if answer.text not in references:
            return Verdict(WRONG, "not what apply_chat_template renders in any form")
        assert answer.mask is not None
        fault = self._fault(answer, references[answer.text], _of_characters(answer.text, answer.mask))
        return Verdict(WRONG, fault) if fault else Verdict(RIGHT)

    def _judge_refusal(self, refusal: str, texts: list[str]) -> Verdict:
        if not texts:
            return Verdict(REFUSED, "the template refuses it")
        said = [
            words(self._shape.messages[i].get("content")) | _called(self._shape.messages[i])
            for i in self._shape.learned
        ]
        if all(any(own and not own & set(WORD.findall(text)) for own in said) for text in texts):
            return Verdict(REFUSED, "the template loses a reply")
        return Verdict(WRONG, f"refused, though the template renders it: {refusal}")

    def _fault(self, answer: Answer, form: list[Message], mask: np.ndarray) -> str | None:
        text = answer.text
        own = {i: words(self._shape.messages[i]) for i in self._shape.learned}
        shared = set().union(
            *(words(m) for i, m in enumerate(self._shape.messages) if i not in own), words(self._extras)
        )
        learned = set().union(*own.values())
        for found in WORD.finditer(text):
            counted = mask[found.start() : found.end()]
            if found[0] in learned - shared and not counted.all():
                return f"{found[0]} of a reply is not in the mask"
            if found[0] in shared - learned and counted.any():
                return f"{found[0]} is in the mask and no reply's"
        missing = learned - set(WORD.findall(text))
        if missing and not answer.cut_replies:
            return f"{sorted(missing)} left out in silence"
        marked = self._marked_by_template(form, text)
        if marked is not None and len(own) == sum(m["role"] == "assistant" for m in form):
            return None if np.array_equal(marked, mask) else "not the template's own marks"
        if marked is not None:
            return None
        for number in own:
            if fault := self._turn_fault(form, number, text, mask, own[number] - shared):
                return f"message {number}: {fault}"
        return None

    def _turn_fault(self, form: list[Message], number: int, text: str, mask: np.ndarray, own: set[str]) -> str | None:
        prompt = self._render(form[:number], add_generation_prompt=True) if number else None
        before = self._render(form[:number]) if number else None
        whole = self._render(form[: number + 1])
        asked = self._render(form[: number + 1], add_generation_prompt=True)
        spots = [found for found in WORD.finditer(text) if found[0] in own]
        has_prompt = prompt != before
        if prompt is not None and has_prompt and text.startswith(prompt):
            start = len(prompt)
            if mask[start - 1]:
                return f"the generation prompt counts: {text[start - 9 : start]!r}"
            stop = None
            if self._always_prompts():
                pass
            elif number == len(form) - 1 and whole != asked:
                stop = len(text.rstrip())
            elif whole is not None and whole != asked and text.startswith(whole.rstrip()):
                stop = len(whole.rstrip())
            if stop is not None:
                late = self._end_of_turn()
                if number < len(form) - 1 and late and text.startswith(late, stop):
                    stop += len(late)
                if not mask[start:stop].all():
                    return f"does not count: {_masked_out(text, mask, start, stop)!r}"
                if mask[stop : stop + 1].any() and number + 1 not in self._shape.learned:
                    return f"counts beyond its end: {text[stop : stop + 9]!r}"
                return None
        if not spots:
            return None
        others = [f.end() for f in WORD.finditer(text) if f.end() <= spots[0].start()]
        gap = range(max(others, default=0), spots[0].start())
        header = "".join(text[c] for c in gap if mask[c])
        if _HEADER.search(header):
            return f"the header counts: {header!r}"
        end = self._end_of_turn()
        last = spots[-1].end()
        if end and text.startswith(end, last) and not mask[last : last + len(end)].all():
            return f"the end of the turn does not count: {end!r}"
        after = text[last:]
        tail = after[: int(np.argmin(np.append(mask[last:], False)))]
        if not form[number].get("tool_calls") and re.search(r"\w", _MARKUP.sub("", tail)) and not WORD.search(tail):
            return f"what follows the reply counts: {tail[:40]!r}"
        return None

    def _end_of_turn(self) -> str:
        """The text that ends a reply both at the end of a chat and within it."""
        chat = [{"role": "user", "content": "zqu"}, {"role": "assistant", "content": "zqv"}]
        short = self._render(chat)
        long = self._render([*chat, {"role": "user", "content": "zqw"}])
        if short is None or long is None or "zqv" not in short or "zqv" not in long:
            return ""
        ends = [_ATOM.findall(text.rpartition("zqv")[2]) for text in (short, long)]
        if self._always_prompts() or re.search(r"\w", _MARKUP.sub("", "".join(ends[0]))):
            return ends[0][0] if ends[0][:1] == ends[1][:1] != [] else ""
        both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
        return "".join(a for a, _ in both).rstrip() or self._late_end(long)

    def _late_end(self, long: str) -> str:
        """The text between a reply and the user's next header, which is known from the beginning of a chat."""
        first = self._render([{"role": "user", "content": "zqu"}])
        gap = _ATOM.findall(long.partition("zqv")[2].partition("zqw")[0])
        before = _ATOM.findall(first.partition("zqu")[0]) if first else []
        while gap and before and gap[-1] == before[-1]:
            gap.pop(), before.pop()
        return "".join(gap).rstrip()

    def _always_prompts(self) -> bool:
        """Whether the template always appends a reply's header, even without a generation prompt."""
        text = self._render([{"role": "user", "content": "zqu"}])
        return text is not None and _HEADER.search(text.rpartition("zqu")[2]) is not None

    def _marked_by_template(self, form: list[Message], text: str) -> np.ndarray | None:
        """The mask from the template's ``{% generation %}`` marks, bool [characters]; None without marks."""
        if "{%" not in str(self._tokenizer.chat_template) or not re.search(
            r"\{%-?\s*generation\s*-?%\}", str(self._tokenizer.chat_template)
        ):
            return None
        encoded = self._tokenizer.apply_chat_template(
            form,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
            **self._extras,
        )
        marked = np.zeros(len(text), dtype=bool)
        for (start, stop), counts in zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True):
            marked[start:stop] |= bool(counts)
        return marked

    def _render(self, messages: list[Message], **more: Any) -> str | None:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **self._extras, **more))
        except Exception:  # a template is a program
            return None


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """All equivalent forms of the chat."""
    plain = [{key: value for key, value in m.items() if key not in ("weight", "train")} for m in messages]
    for silence, arguments, content in itertools.product(("", None, "absent"), (dict, str), ("as is", str, list)):
        yield [_in_form(message, silence, arguments, content) for message in plain]


def _in_form(message: Message, silence: str | None, arguments: type, content: Any) -> Message:
    message = dict(message)
    if message.get("tool_calls"):
        if arguments is str:
            message["tool_calls"] = [
                {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}
                for c in message["tool_calls"]
            ]
        if not message["content"]:
            message["content"] = silence
            if silence == "absent":
                del message["content"]
    said = message.get("content")
    if content is list and isinstance(said, str):
        message["content"] = [{"type": "text", "text": said}]
    elif content is str and isinstance(said, list):
        message["content"] = "".join(part["text"] for part in said)
    return message


def _called(message: Message) -> set[str]:
    return words([call["function"]["arguments"] for call in message.get("tool_calls", [])])


def _of_characters(text: str, mask: np.ndarray) -> np.ndarray:
    """Convert a mask over bytes to one over characters: a character has the value of its first byte."""
    starts = np.cumsum([0, *(len(character.encode()) for character in text)])[:-1]
    return mask[starts] if len(text) else mask


def _masked_out(text: str, mask: np.ndarray, start: int, stop: int) -> str:
    return "".join(text[c] for c in range(start, stop) if not mask[c])[:40]
