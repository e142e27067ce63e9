"""Records of a curation, made by hand, and steps as a configuration gives them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from schemas.curate_steps import StepSettings
from schemas.load import validate
from schemas.strict import Strict
from teacher_cache.corpus.curated_records import Generated
from teacher_cache.corpus.documents import Document
from teacher_cache.curation.curation_step import GlobalStep, LocalStep, StepPlace
from teacher_cache.curation.record import Record, of_document, of_reply
from teacher_cache.curation.steps_table import open_step
from teacher_cache.generated.reply_files import Prompt, Reply


class Step(Strict):
    """One step of a configuration."""

    step: StepSettings


def opened(settings: Mapping[str, Any], layers: tuple[str, ...] = ("base", "code")) -> LocalStep | GlobalStep:
    """The step of settings as a configuration gives them."""
    return open_step(validate(Step, {"step": dict(settings)}, "test").step, StepPlace("steps.0", "tokenizer", layers))


def text_record(text: str, layer: str = "base", **fields: Any) -> Record:
    """A record of plain text."""
    return replace(of_document(Document("a.txt#1", "a.txt", layer, text)), **fields)


def chat_record(prompt: str, reply: str, layer: str = "base", **fields: Any) -> Record:
    """A record of a chat with one reply."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return replace(of_document(Document("a.jsonl#1", "a.jsonl:1", layer, "", messages)), **fields)


def reply_record(prompt: str, reply: str, layer: str = "base") -> Record:
    """A generated reply, whose token ids are learned."""
    ids = np.arange(5, dtype=np.uint32)
    asked = Prompt("0" * 32, "a.jsonl#1", layer, prompt, ids, b"")
    return of_reply(Generated(asked, Reply(asked.key, 0, reply, ids, "stop", "", 0, "", "", ""), None))


def judged(step: LocalStep | GlobalStep, *records: Record) -> list[str]:
    """Why a local step lets each record leave."""
    assert isinstance(step, LocalStep)
    return step.reasons(step.changed(records))
