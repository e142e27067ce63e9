"""What steps see of a record, and how its text changes."""

import numpy as np
import pytest

from support.records_to_judge import reply_record
from teacher_cache.corpus.documents import Document
from teacher_cache.curation.record import of_document


def test_of_plain_text_all_is_learned_and_of_a_prompt_with_a_completion_the_rest() -> None:
    plain = of_document(Document("a#1", "a", "base", "all of it"))
    assert (plain.prompt, plain.reply, plain.messages, plain.ids) == ("", "all of it", None, None)
    pair = of_document(Document("a#1", "a", "base", "asked said", prompt_chars=6))
    assert (pair.prompt, pair.reply) == ("asked ", "said")


def test_of_a_chat_the_messages_to_train_on_are_learned() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "no", "train": False},
        {"role": "assistant", "reasoning_content": "hm", "content": "yes"},
        {"role": "tool", "content": "result", "train": True},
    ]
    record = of_document(Document("a#1", "a", "code", "", messages), 7, 2)
    assert record.prompt == "Be brief.\n\none\n\ntwo\n\nno"
    assert sorted(record.reply.split("\n\n")) == ["hm", "result", "yes"]
    assert (record.number, record.source, record.layer, record.source_id) == (7, 2, "code", "a#1")
    other = of_document(Document("a#1", "a", "code", "", messages), roles=["user"])
    assert other.reply == "one\n\ntwo\n\nresult"


def test_a_change_of_text_reaches_every_text_and_nothing_else() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}], "name": "one"},
        {"role": "assistant", "content": "yes", "tool_calls": [{"function": {"name": "f"}}]},
    ]
    record = of_document(Document("a#1", "a", "code", "", messages)).with_flags(score=1.5)
    changed = record.rewritten(str.upper)
    assert changed.messages == [
        {"role": "user", "content": [{"type": "text", "text": "ONE"}, {"type": "image"}], "name": "one"},
        {"role": "assistant", "content": "YES", "tool_calls": [{"function": {"name": "f"}}]},
    ]
    assert (changed.prompt, changed.reply, changed.flags) == ("ONE", "YES", {"score": 1.5})
    assert record.messages == messages
    assert changed.rewritten(str.upper) is changed
    pair = of_document(Document("a#1", "a", "base", "ß said", prompt_chars=2)).rewritten(str.upper)
    assert (pair.prompt, pair.reply) == ("SS ", "SAID")


def test_a_generated_reply_keeps_its_text() -> None:
    record = reply_record("asked", "said")
    assert record.ids is not None
    assert record.n_tokens == len(record.ids)
    assert record.ids.dtype == np.uint32
    with pytest.raises(TypeError, match="token ids are learned"):
        record.rewritten(str.upper)
