"""Chat records from untrusted caches."""

import dataclasses

import pytest

from schemas.chat_record import ChatMessage, ChatRecord
from schemas.errors import CorruptCacheError
from support.synthetic import token_sample
from teacher_cache.records import TokenSample
from teacher_cache.shards.chats import chat_of


def with_chat(messages: list[ChatMessage]) -> TokenSample:
    return dataclasses.replace(token_sample([1, 2, 3]), chat=ChatRecord(messages=messages).to_json())


def message(start: int, end: int) -> ChatMessage:
    return ChatMessage(role="user", spans={"content": (start, end)})


def test_texts_end_with_the_text() -> None:
    size = len(token_sample([1, 2, 3]).text.encode())
    found = chat_of(with_chat([message(0, size)]), "here")
    assert found is not None
    assert found.messages[0].spans == {"content": (0, size)}
    with pytest.raises(CorruptCacheError, match=f"here: chat: message 1: content ends at byte {size + 1} of {size}"):
        chat_of(with_chat([message(0, 1), message(0, size + 1)]), "here")


def test_texts_that_lie_in_one_another_are_bounded() -> None:
    """Each is copied when the messages are restored: a small record would fill the memory."""
    size = len(token_sample([1, 2, 3]).text.encode())
    chat_of(with_chat([message(0, size)] * 8), "here")
    with pytest.raises(
        CorruptCacheError, match=f"here: chat: messages of {9 * size} bytes in all, in a text of {size}"
    ):
        chat_of(with_chat([message(0, size)] * 9), "here")
