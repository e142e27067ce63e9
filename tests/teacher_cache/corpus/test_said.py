"""What is kept of a chat: every message can be restored, and its texts are spans of the rendering."""

from typing import Any

import pytest

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.chat_record import ChatMessage, ChatRecord
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.said import cut_record

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "user"},  # as the header above it says
    {"role": "assistant", "content": " Grüße 😀\n"},
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "Nein."},
]
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
)


def recorded(
    tokenizer: Any, messages: list[dict[str, Any]], template: str | None = None, **more: Any
) -> tuple[str, ChatRecord]:
    if template is not None:
        tokenizer.chat_template = template
    config = CorpusConfig(sources=[SourceConfig(path="unused")])
    chat = ChatRenderer(tokenizer, config).render(Document("", "here", "", "", messages, **more))
    return chat.text, chat.record


def said(text: str, message: ChatMessage) -> dict[str, str]:
    return {key: text.encode()[start:end].decode() for key, (start, end) in message.spans.items()}


def test_contents_are_spans_and_replies_are_closed(byte_level: Any) -> None:
    text, record = recorded(byte_level, CHAT)
    assert [said(text, message) for message in record.messages] == [{"content": m["content"]} for m in CHAT]
    assert [message.learned for message in record.messages] == [m["role"] == "assistant" for m in CHAT]
    assert [message.closed for message in record.messages] == [m["role"] == "assistant" for m in CHAT]
    assert [message.restored(text.encode()) for message in record.messages] == CHAT


def test_what_the_template_trims_or_drops_is_not_in_the_span(new_tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": "<think>hm</think>\nyes", "name": "bot"},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "done", "reasoning_content": "let me see"},
    ]
    text, record = recorded(new_tokenizer(), messages, THINKS)
    assert [said(text, message) for message in record.messages] == [
        {"content": "hi"},
        {"content": "yes"},
        {"content": "ok"},
        {"content": "done", "reasoning_content": "let me see"},
    ]
    assert record.messages[1].fields == {"name": "bot"}


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set content = m.content %}{% set ns = namespace(r='') %}"
    "{% if m.reasoning_content %}{% set ns.r = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set ns.r = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ ns.r.strip('\n') }}\n</think>\n\n{% endif %}{{ content.lstrip('\n') }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("reasoning", "content"),
    [("2 + 2 is 4", "4"), ("", "think"), ("a thought", "think"), ("think", ">"), ("yes", "<b>yes</b>"), ("</", "/")],
)
def test_a_reply_is_found_behind_its_reasoning_and_outside_of_tags(
    new_tokenizer: Any, reasoning: str, content: str
) -> None:
    reply = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    text, record = recorded(new_tokenizer(), [{"role": "user", "content": "?"}, reply], QWEN_LIKE)
    data, (start, end) = text.encode(), record.messages[1].spans["content"]
    assert data[:start].endswith(b"\n</think>\n\n")
    assert data[start:].startswith(f"{content}<|im_end|>".encode())
    assert end - start == len(content)
    assert record.messages[1].restored(data) == reply
    if reasoning:
        assert data[: record.messages[1].spans["reasoning_content"][0]].endswith(b"<think>\n")


def test_reasoning_that_the_template_drops_is_not_looked_for_in_the_reply(new_tokenizer: Any) -> None:
    reply = {"role": "assistant", "content": "yes, of course", "reasoning_content": "yes"}
    more = [{"role": "user", "content": "!"}, {"role": "assistant", "content": "no"}]
    text, record = recorded(new_tokenizer(), [{"role": "user", "content": "?"}, reply, *more], QWEN_LIKE)
    assert said(text, record.messages[1]) == {"content": "yes, of course"}
    assert record.messages[1].restored(text.encode()) == reply


def test_reasoning_that_is_written_with_other_blanks_is_kept(new_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>so</think> done"}]
    text, record = recorded(new_tokenizer(), messages, QWEN_LIKE.replace(".lstrip('\n')", ".strip()"))
    assert said(text, record.messages[1]) == {"content": "<think>\nso\n</think>\n\ndone"}


def test_what_is_no_text_is_kept_as_it_is(new_tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{{ tools | tojson }}"
    )
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]},
        {"role": "assistant", "content": "", "tool_calls": [call], "weight": 1},
    ]
    tokenizer = new_tokenizer()
    text, record = recorded(tokenizer, messages, template, tools=tools)
    assert record.tools == tools
    assert record.messages[0].restored(text.encode()) == messages[0]
    assert record.messages[1].restored(text.encode()) == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize("num_bytes", range(0, 140, 3))
def test_a_cut_chat_keeps_what_is_there_and_its_last_reply_is_not_closed(byte_level: Any, num_bytes: int) -> None:
    text, record = recorded(byte_level, CHAT)
    data = text.encode()[:num_bytes]
    cut = cut_record(record, num_bytes)
    for message, whole in zip(cut.messages, record.messages, strict=False):
        start, end = message.spans["content"]
        assert end <= num_bytes
        assert data[start:end] == text.encode()[slice(*whole.spans["content"])][: end - start]
        assert message.closed is (whole.closed and whole.spans["content"][1] < num_bytes)
    if num_bytes < len(text.encode()) - 20:
        assert len(cut.messages) < len(record.messages) or not cut.messages[-1].closed


def test_a_record_is_read_as_it_was_written(byte_level: Any) -> None:
    _, record = recorded(byte_level, CHAT)
    assert ChatRecord.model_validate_json(record.to_json()) == record
