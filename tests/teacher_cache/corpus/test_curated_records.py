"""Rows of a curated corpus: what goes in comes out, and nothing of a forged row is taken unchecked."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.errors import CorruptCacheError
from support.records_to_judge import reply_record
from teacher_cache.corpus.curated_records import Generated, content_of, row_of
from teacher_cache.corpus.documents import BadRecord, Document

CHAT = Document(
    "chats.jsonl#7",
    "chats.jsonl:7",
    "code",
    "",
    [
        {"role": "user", "content": "Zahl? 🦜"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "\u200b1\x00", "weight": 0},
    ],
    [{"type": "function", "function": {"name": "f"}}],
    [{"title": "t"}],
    {"enable_thinking": False},
)
DOCUMENTS = [
    Document("a.txt#1", "a.txt", "base", "plain, é\n"),
    Document("a.txt#2", "a.txt", "base", "asked said", prompt_chars=6),
    Document("a.txt#3", "a.txt", "base", ""),
    CHAT,
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.source_id)
def test_documents_come_out_as_they_went_in(document: Document) -> None:
    row = row_of(document, 5, 1, 9, b"{}")
    assert content_of(row, "place") == document._replace(where=f"place: record 5 ({document.source_id})")


def test_a_generated_reply_comes_out_as_it_went_in() -> None:
    wanted = reply_record("asked", "said").content
    assert isinstance(wanted, Generated)
    found = content_of(row_of(wanted, 5, 1, 9, b"{}"), "place")
    assert isinstance(found, Generated)
    for one, other in zip(found[:2], wanted[:2], strict=True):
        for name, value in vars(other).items():
            assert np.array_equal(getattr(one, name), value), name
    assert found.chat is None


def test_what_json_cannot_hold_is_a_bad_record() -> None:
    with pytest.raises(BadRecord, match=r"chats\.jsonl:7: the record holds what JSON cannot"):
        row_of(CHAT._replace(template_kwargs={"x": object()}), 0, 0, 0, b"{}")
    with pytest.raises(BadRecord, match=r"chats\.jsonl:7: the record holds what JSON cannot"):
        row_of(CHAT._replace(messages=[{"role": "user", "content": "\ud800"}]), 0, 0, 0, b"{}")


@pytest.mark.parametrize(
    "content",
    [
        {"text": 5},
        {"text": "short", "prompt_chars": 6},
        {"text": "short", "prompt_chars": -1},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": ["text"]},
        {"unknown": 1},
        [],
    ],
)
def test_forged_documents_are_refused(content: Any) -> None:
    row = replace(row_of(DOCUMENTS[0], 5, 1, 9, b"{}"), content=json.dumps(content).encode())
    with pytest.raises(CorruptCacheError, match=r"place: record 5 \(a\.txt#1\)"):
        content_of(row, "place")


@pytest.mark.parametrize("changes", [{"sample": -1}, {"finish": "length "}, {"seed": 2**63}, {"key": 1}, {"more": 1}])
def test_forged_replies_are_refused(changes: dict[str, Any]) -> None:
    row = row_of(reply_record("asked", "said").content, 5, 1, 9, b"{}")
    content = json.dumps({**json.loads(row.content), **changes}).encode()
    with pytest.raises(CorruptCacheError, match="place: record 5 "):
        content_of(replace(row, content=content), "place")
    with pytest.raises(CorruptCacheError, match="place: record 5 "):
        content_of(replace(row, chat=b'{"messages": [{}]}'), "place")
