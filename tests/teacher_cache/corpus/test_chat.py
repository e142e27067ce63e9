import pytest

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' </s>' }}{% endif %}{% endfor %}"
)
# Like Qwen3's: the last reply carries its reasoning, or an empty block of it; earlier replies have theirs removed.
THINKING = (
    "{%- for m in messages -%}{%- set last = loop.last -%}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' -%}{%- set answer = m.content.split('</think>')[-1].lstrip() -%}"
    "{%- set reason = m.content.split('</think>')[0][7:] if '</think>' in m.content else '\n\n' -%}"
    "{{ '<think>' + reason + '</think>\n\n' + answer if last else answer }}"
    "{%- else -%}{{ m.content }}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def chat(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


@pytest.fixture
def render(byte_level, monkeypatch, tmp_path):
    """The renderer's answer, given a template, messages, what else the record holds, and settings of the corpus."""

    def rendered(template, messages, settings=None, **record):
        monkeypatch.setattr(byte_level, "chat_template", template)
        source = SourceConfig(path="data.jsonl", format="jsonl")
        config = CorpusConfig(sources=[source], **(settings or {}))
        document = Document("data.jsonl#1", "data.jsonl:1", "base", "", messages, **record)
        return ChatRenderer(byte_level, config).render(document)

    return rendered


@pytest.fixture
def replies(render):
    """The text of each reply, given the same."""

    def located(*args, **kwargs):
        chat = render(*args, **kwargs)
        return [chat.text[start:stop] for start, stop in chat.spans]

    return located


@pytest.mark.parametrize(
    ("template", "messages", "wanted"),
    [
        (CHATML, chat("q", "one", "q", " two \n"), ["one<|im_end|>", " two \n<|im_end|>"]),
        (CHATML, chat("same", "same", "same", "same"), ["same<|im_end|>"] * 2),
        (CHATML, chat("q", "assistant"), ["assistant<|im_end|>"]),
        (CHATML, chat("q", ""), ["<|im_end|>"]),
        (CHATML, chat("q"), []),
        (CHATML, chat("q", "a")[1:], ["a<|im_end|>"]),
        (CHATML, [{"role": "system", "content": "s"}, *chat("q", "日本😀")], ["日本😀<|im_end|>"]),
        (LLAMA_2, chat("q", " one ", "q", "two"), [" one </s>", " two </s>"]),
        (PLAIN, chat("q", "one", "q", "two"), [" one", " two"]),
        (THINKING, chat("q", "think", "q", "t"), ["think<|im_end|>", "<think>\n\n</think>\n\nt<|im_end|>"]),
        (
            THINKING,
            chat("q", "<think>x</think>one", "q", "<think>y</think>two"),
            ["one<|im_end|>", "<think>y</think>\n\ntwo<|im_end|>"],
        ),
    ],
)
def test_replies_with_their_end_of_turn(replies, template, messages, wanted):
    assert replies(template, messages) == wanted


def test_generation_marks_are_not_needed_but_do_no_harm(replies):
    marked = CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    )
    messages = chat("q", "one", "q", "two")
    assert "generation %}" in marked
    assert replies(marked, messages) == replies(CHATML, messages)


def test_no_chat_template(replies):
    with pytest.raises(UserError, match=r"data.jsonl:1: the record is a chat .* no chat template"):
        replies(None, chat("q", "a"))


def test_template_that_refuses(replies):
    with pytest.raises(UserError, match=r"data.jsonl:1: the chat template refuses this chat: roles must alternate"):
        replies("{{ raise_exception('roles must alternate') }}", chat("q", "a"))


def test_a_template_that_leaves_out_the_reply_is_refused(replies):
    with pytest.raises(UserError, match=r"data.jsonl:1: message 1: the chat template does not write this reply .*'a'"):
        replies("{{ 'constant' }}", chat("q", "a", "q", "b"))


def test_a_template_that_writes_one_message_into_another_turn_is_refused(replies):
    pairs = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ 'Q ' + messages[loop.index0 - 1].content + ' A ' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'more:' }}{% endif %}"
    )
    with pytest.raises(UserError, match=r"data.jsonl:1: message 1: cannot locate .* writes message 0 into it"):
        replies(pairs, chat("question", "answer"))
