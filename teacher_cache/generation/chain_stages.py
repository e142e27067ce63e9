"""Chains of verification, stage by stage: draft, questions, answers without the draft, final reply.

The chains of a unit go through each stage together, so a unit is still a function of its prompts and the settings, and
is done again as a whole. What comes out is one reply: the texts of the stages (what follows a ``</think>``) in their
tags, tokenized as a whole. Its ids are the tokenizer's, not those that were drawn.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from schemas.chat_record import ChatRecord
from schemas.generate_config import GenerateConfig, ReasoningConfig
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import BadRecord, Document, Messages
from teacher_cache.corpus.token_spans import ByteTokenizer
from teacher_cache.generated.prompt_chat import prompt_chat, prompt_messages
from teacher_cache.generated.reply_files import Prompt
from teacher_cache.generated.verification_chain import CHAIN, THOUGHT_END, Chain, parse_chain
from teacher_cache.generation.reject import Rejecter
from teacher_cache.generation.sampler import Asked, Sampler, seed_of

INCOMPLETE = "incomplete"
_LISTED = re.compile(r"^\s*(?:Q?\d+\s*[.):]|[-*•])\s*(.+)$", re.MULTILINE)
_QUESTION = re.compile(r"^(.+\?)\s*$", re.MULTILINE)


class Judged(NamedTuple):
    """A reply with what was found out about it, or the part of a chain at which it failed."""

    ids: np.ndarray  # uint32 [N]
    finish: str
    text: str
    reason: str  # empty: accepted
    made: str = ""  # empty: at once; CHAIN


@dataclass
class Turn:
    """A prompt, what was asked with it, and the draft."""

    prompt: Prompt
    sample: int
    asked: Asked
    draft: Judged

    @cached_property
    def chat(self) -> ChatRecord:
        """The prompt's chat. Raises CorruptCacheError."""
        return prompt_chat(self.prompt, self.prompt.source_id)

    @cached_property
    def messages(self) -> Messages:
        """The prompt's messages. Raises CorruptCacheError."""
        return prompt_messages(self.prompt, self.chat)


class _Request(NamedTuple):
    """What one stage asks about a turn."""

    turn: Turn
    stage: str  # part of the seed
    messages: Messages
    most_tokens: int


class ChainStages:
    """Makes chains of drafts."""

    def __init__(
        self, config: GenerateConfig, reasoning: ReasoningConfig, tokenizer: Any, sampler: Sampler, rejecter: Rejecter
    ) -> None:
        self.layers = frozenset(reasoning.layers)
        self._reasoning, self._sampler, self._rejecter = reasoning, sampler, rejecter
        self._renderer = ChatRenderer(tokenizer, config.prompts.as_corpus(), section="prompts")
        self._tokenizer = ByteTokenizer(tokenizer)
        self._longest = config.prompts.max_tokens + config.most_after_prompt
        self._seed = config.seed

    def completed(self, turns: Sequence[Turn]) -> list[Judged]:
        """One whole chain a turn, or the part that was rejected, with its reason."""
        found = [turn.draft for turn in turns]
        alive = [place for place, turn in enumerate(turns) if not turn.draft.reason]
        questions: dict[int, list[str]] = {}
        for place, said in self._asked(alive, [self._for_questions(turns[place]) for place in alive]):
            found[place], questions[place] = said, listed(after_thought(said.text), self._reasoning.questions)
            if not said.reason and not questions[place]:
                found[place] = said._replace(reason=INCOMPLETE)
        alive = [place for place in alive if not found[place].reason]
        answers: dict[int, list[str]] = {place: [] for place in alive}
        about = [(place, number) for place in alive for number in range(len(questions[place]))]
        requests = [self._for_answer(turns[place], number, questions[place][number]) for place, number in about]
        for place, said in self._asked([place for place, _ in about], requests):
            if not found[place].reason:
                found[place] = said
            answers[place].append(after_thought(said.text))
        alive = [place for place in alive if not found[place].reason]
        finals = [self._for_final(turns[place], questions[place], answers[place]) for place in alive]
        for place, said in self._asked(alive, finals):
            draft = after_thought(turns[place].draft.text)
            chain = Chain(draft, tuple(questions[place]), tuple(answers[place]), after_thought(said.text))
            found[place] = said if said.reason else self._whole(chain, said)
        return found

    def _for_questions(self, turn: Turn) -> _Request:
        asked = self._reasoning.ask_questions.replace("{questions}", str(self._reasoning.questions))
        return _Request(turn, "questions", _after_draft(turn, asked), self._reasoning.part_tokens)

    def _for_answer(self, turn: Turn, number: int, question: str) -> _Request:
        asked = self._reasoning.ask_answer.replace("{question}", question)
        messages = _continued(turn.messages, asked)
        return _Request(turn, f"answer {number}", messages, self._reasoning.part_tokens)

    def _for_final(self, turn: Turn, questions: Sequence[str], answers: Sequence[str]) -> _Request:
        both = "\n\n".join(f"{question}\n{answer}" for question, answer in zip(questions, answers, strict=True))
        asked = self._reasoning.ask_final.replace("{answers}", both)
        return _Request(turn, "final", _after_draft(turn, asked), turn.asked.sampling.max_new_tokens)

    def _asked(self, places: Sequence[int], requests: Sequence[_Request]) -> Iterator[tuple[int, Judged]]:
        """What is written to each request, judged; requests that cannot be made are ``incomplete``."""
        asked = {n: one for n, request in enumerate(requests) if (one := self._rendered(request)) is not None}
        written = dict(zip(asked, self._sampler.write([*asked.values()], uncounted) if asked else [], strict=True))
        for n, place in enumerate(places):
            if n not in written:
                yield place, requests[n].turn.draft._replace(reason=INCOMPLETE)
                continue
            ids, finish = written[n]
            yield place, Judged(ids, finish, *self._rejecter.judge(ids, finish))

    def _rendered(self, request: _Request) -> Asked | None:
        """The request as token ids; None if it is too long, or the template refuses it."""
        turn = request.turn
        document = Document(
            turn.prompt.source_id,
            turn.prompt.source_id,
            turn.prompt.layer,
            "",
            request.messages,
            turn.chat.tools,
            turn.chat.documents,
            turn.chat.template_kwargs,
        )
        try:
            text, _ = self._renderer.prompt(document)
        except BadRecord:
            return None
        (spans,) = self._tokenizer.encode([text])
        if len(spans.ids) + request.most_tokens > self._longest:
            return None
        sampling = turn.asked.sampling.model_copy(update={"max_new_tokens": request.most_tokens})
        seed = seed_of(f"{turn.prompt.key} {request.stage}", turn.sample, self._seed)
        return Asked(spans.ids, sampling, turn.asked.stop_ids, seed)

    def _whole(self, chain: Chain, last: Judged) -> Judged:
        """The chain as one reply, which ends with the token that ended its last part."""
        text = chain.text()
        (spans,) = self._tokenizer.encode([text])
        ids = np.append(spans.ids, last.ids[-1:])
        spelled, reason = self._rejecter.judge(ids, last.finish)
        reason = reason or ("" if parse_chain(spelled) == chain else INCOMPLETE)
        return Judged(ids, last.finish, spelled, reason, CHAIN)


def listed(text: str, most: int) -> list[str]:
    """The items of a list of questions, or else the lines that are questions; at most ``most``, each once."""
    found = _LISTED.findall(text) or _QUESTION.findall(text)
    items = dict.fromkeys(item.strip() for item in found)
    return [item for item in items if any(map(str.isalpha, item))][:most]


def after_thought(text: str) -> str:
    """The text after a thought, without white space around it."""
    return text.rpartition(THOUGHT_END)[2].strip()


def _after_draft(turn: Turn, asked: str) -> Messages:
    draft = {"role": "assistant", "content": after_thought(turn.draft.text)}
    return [*turn.messages, draft, {"role": "user", "content": asked}]


def _continued(messages: Messages, asked: str) -> Messages:
    """The chat with one more request; in the same message where the last one is the user's, since turns alternate."""
    *before, last = messages
    if last["role"] == "user" and isinstance(last.get("content"), str):
        return [*before, {**last, "content": f"{last['content']}\n\n{asked}"}]
    return [*messages, {"role": "user", "content": asked}]


def uncounted(_: int) -> None:
    """Progress counts whole replies."""
