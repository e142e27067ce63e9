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
def renderer(byte_level, monkeypatch):
    """Factory of renderers, from a template and corpus settings."""

    def make(template, settings=None):
        monkeypatch.setattr(byte_level, "chat_template", template)
        source = SourceConfig(path="data.jsonl", format="jsonl")
        return ChatRenderer(byte_level, CorpusConfig(sources=[source], **(settings or {})))

    return make


def document(messages, **record):
    return Document("data.jsonl#1", "data.jsonl:1", "base", "", messages, **record)


@pytest.fixture
def render(renderer):
    """Render messages with a template, corpus settings and the record's other fields."""

    def rendered(template, messages, settings=None, **record):
        return renderer(template, settings).render(document(messages, **record))

    return rendered


@pytest.fixture
def replies(render):
    """The text of each reply, from the same arguments."""

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
    with pytest.raises(UserError, match=r"data.jsonl:1: the record is a chat, .* no chat template"):
        replies(None, chat("q", "a"))


def test_template_that_refuses(replies):
    with pytest.raises(UserError, match=r"data.jsonl:1: the chat template rejects this chat: roles must alternate"):
        replies("{{ raise_exception('roles must alternate') }}", chat("q", "a"))


def test_a_template_that_leaves_out_the_reply_is_refused(replies):
    with pytest.raises(
        UserError, match=r"data.jsonl:1: message 1: the chat template does not render this reply .*'one'"
    ):
        replies("{{ 'a text' }}", chat("q", "one", "q", "two"))


def test_templates_without_a_loop_over_messages(replies):
    joined = "{{ messages | map(attribute='content') | join('|') }}"
    assert replies(joined + "|", chat("q", "one two", "q")) == ["one two|"]
    with pytest.raises(UserError, match=r"data.jsonl:1: message 1: cannot locate the reply \('one two'\)"):
        replies("{{ messages | length }} " + joined, chat("q", "one two", "q"))


def test_a_template_that_writes_one_message_into_another_turn_is_refused(replies):
    pairs = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ 'Q ' + messages[loop.index0 - 1].content + ' A ' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'more:' }}{% endif %}"
    )
    with pytest.raises(UserError, match=r"data.jsonl:1: message 1: cannot locate .* writes message 0 into it"):
        replies(pairs, chat("question", "answer"))


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
WITH_CALLS = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' ' }}{{ c.function.arguments | tojson }}"
    "{{ '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def calling(content=None, arguments=None, names=("weather",)):
    """A question, a reply that calls tools (without the keys for no content, no arguments), tool results, an answer."""
    functions = [{"name": name, **({} if arguments is None else {"arguments": arguments})} for name in names]
    reply = {"role": "assistant", "tool_calls": [{"type": "function", "function": each} for each in functions]}
    if content is not None:
        reply["content"] = content
    results = [{"role": "tool", "content": f"rain {name}"} for name in names]
    return [{"role": "user", "content": "q"}, reply, *results, {"role": "assistant", "content": "wet"}]


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        (calling("", {"city": "Bern"}), '<call>weather {"city": "Bern"}</call><|im_end|>'),
        (calling(None, {"city": "Bern"}), '<call>weather {"city": "Bern"}</call><|im_end|>'),
        (calling("I look.", {}), "I look.<call>weather {}</call><|im_end|>"),
        (calling("I look."), "I look.<call>weather {}</call><|im_end|>"),
        (calling("", {}, ("a", "b")), "<call>a {}</call><call>b {}</call><|im_end|>"),
    ],
)
def test_tool_calls_count(replies, messages, wanted):
    assert replies(WITH_CALLS, messages, tools=[WEATHER]) == [wanted, "wet<|im_end|>"]


def test_a_call_without_end_of_turn_counts(replies):
    template = WITH_CALLS.replace("{{ '<|im_end|>\n' }}", "")
    assert replies(template, calling("I look.", {})) == ["I look.<call>weather {}</call>", "wet"]


def test_a_template_that_wants_null_content_and_arguments_as_json(replies):
    template = (
        "{% for m in messages %}{% if m.content is none %}{{ 'A: ' }}{% for c in m.tool_calls %}"
        "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}{{ '</s>' }}"
        "{% else %}{{ m.role[0] | upper + ': ' + m.content + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    assert replies(template, calling("", {"city": "Bern"})) == ['weather({"city": "Bern"})</s>', "wet</s>"]


def test_tools_documents_and_arguments_reach_the_template(render):
    template = "{{ tools | length ~ documents[0].text ~ mood ~ tone ~ '\n' }}" + CHATML
    settings = {"chat_template_kwargs": {"mood": "calm", "tone": "low"}}
    record = {"tools": [WEATHER], "documents": [{"text": "doc"}], "template_kwargs": {"tone": "high"}}
    assert render(template, chat("q", "a"), settings, **record).text.startswith("1doccalmhigh\n<|im_start|>user\nq")


def test_what_the_template_does_not_take_is_named_once(renderer, caplog):
    messages = [{"role": "user", "content": "q", "mood": "x"}, *chat("q", "a")[1:]]
    chats = renderer(CHATML, {"chat_template_kwargs": {"enable_thinkin": False}})
    for _ in range(2):
        chats.render(document(messages, tools=[WEATHER]))
    assert sorted(record.getMessage() for record in caplog.records) == [
        "corpus.chat_template_kwargs: 'enable_thinkin' is ignored: the chat template has no such variable",
        "data.jsonl:1: message key 'mood' is ignored: the chat template does not use it",
        "data.jsonl:1: the record's 'tools' is ignored: the chat template has no such variable",
    ]


EOS_AFTER_CHAT = CHATML.replace("{% endif %}", "{% else %}{{ '</s>' }}{% endif %}")
LAST_ENDS_DIFFERENTLY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NEXT_CLOSES = (  # the end of a turn is written with the next one, and after the chat
    "{% for m in messages %}{% if not loop.first %}{{ '<|eom|>' }}{% endif %}{{ '<|bom|>' + m.role + ' ' + m.content }}"
    "{% endfor %}{{ '<|eom|>' }}{% if add_generation_prompt %}{{ '<|bom|>assistant ' }}{% endif %}"
)
PROMPT_ALWAYS = (  # like Command A: a header after every chat
    "{% for m in messages %}{{ '<|turn|>' + m.role + '|' + m.content + '<|end|>' }}{% endfor %}"
    "{{ '<|turn|>assistant' }}{% if add_generation_prompt %}{{ '|' }}{% endif %}"
)
PROMPT_IN_LOOP = (
    "{% for m in messages %}{{ '\n  <' + m.role + '>' + m.content + '</s>' }}"
    "{% if loop.last and m.role == 'user' and add_generation_prompt %}{{ '<assistant>' }}{% endif %}{% endfor %}"
)
NO_THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' if '</think>' not in m.content }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
BY_NUMBER = (
    "{% for i in range(messages | length) %}{% set m = messages[i] %}{{ '<' + m.role + '>' + m.content + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
IN_A_MACRO = (  # the template compares a number that a macro writes
    "{% macro last() %}{% for m in messages %}{% if loop.last %}{{ loop.index0 }}{% endif %}{% endfor %}{% endmacro %}"
    "{% set end = last() | int %}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{% if loop.index0 == end %}{{ '!' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
USER_CLOSES = (  # like Apertus: a reply is closed by the question after it
    "{% set ns = namespace(open=false) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|close|>' if ns.open else '' }}{{ '<|user|>' + m.content }}{% set ns.open = false %}"
    "{% else %}{{ '' if ns.open else '<|assistant|>' }}{{ m.content }}"
    "{% set ns.open = true %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS_AFTER_CHAT = (  # like Command R+: an instruction after every chat, before the prompt
    "{% for m in messages %}{{ '<|turn|><|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{{ '<|turn|><|system|>Answer.<|end|>' }}{% if add_generation_prompt %}{{ '<|turn|><|assistant|>' }}{% endif %}"
)
ALL_AT_ONCE = (  # the loop writes nothing
    "{% set ns = namespace(out='') %}{% for m in messages %}"
    "{% set ns.out = ns.out ~ m.role ~ ': ' ~ m.content ~ '<sep>' %}{% endfor %}"
    "{% if add_generation_prompt %}{% set ns.out = ns.out ~ 'assistant:' %}{% endif %}{{ ns.out }}"
)
SYSTEM_IN_LAST_QUESTION = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{{ messages[0].content + ' ' if loop.index0 == ns.last }}{{ m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "wanted"),
    [
        (EOS_AFTER_CHAT, chat("q", "one", "q", "two"), ["one<|im_end|>", "two<|im_end|>\n</s>"]),
        (EOS_AFTER_CHAT, chat("q", "one", "q"), ["one<|im_end|>"]),
        (LAST_ENDS_DIFFERENTLY, chat("q", "one", "q", "two"), ["one<|im_end|>", "two<|return|>"]),
        (NEXT_CLOSES, chat("q", "one", "q", "two"), ["one<|eom|>", "two<|eom|>"]),
        (USER_CLOSES, chat("q", "one", "", "two"), ["one<|close|>", "two"]),
        (NEXT_CLOSES, [*chat("q", "one"), *chat("q", "two")[1:]], ["one<|eom|>", "two<|eom|>"]),
        (PROMPT_ALWAYS, chat("q", "one", "q", "two"), ["one<|end|>", "two<|end|>"]),
        (PROMPT_ALWAYS, [*chat("q", "one"), *chat("q", "two")[1:]], ["one<|end|>", "two<|end|>"]),
        (PROMPT_IN_LOOP, chat("q", "one", "q", "two"), ["one</s>", "two</s>"]),
        (NO_THINK, chat("q", "one", "q", "two"), ["one<|im_end|>", "two<|im_end|>"]),
        (NO_THINK, chat("q", "<think>\nhm\n</think>\n\none"), ["<think>\nhm\n</think>\n\none<|im_end|>"]),
        (USER_CLOSES, chat("q", "one", "q", "", "q", "two"), ["one<|close|>", "<|close|>", "two"]),
        (WORDS_AFTER_CHAT, chat("q", "one", "q", "two"), ["one<|end|>", "two<|end|>"]),
        (ALL_AT_ONCE, chat("q", "one", "q", "two"), ["one<sep>", "two<sep>"]),
        (BY_NUMBER, chat("q", "one", "q", "two"), ["one</s>", "two</s>"]),
        (IN_A_MACRO, chat("q", "one", "q", "two"), ["one", "two!"]),
        (
            SYSTEM_IN_LAST_QUESTION,
            [{"role": "system", "content": "s"}, *chat("q", "one", "q", "two")],
            ["one</s>", "two</s>"],
        ),
    ],
)
def test_turns_that_renderings_of_parts_of_the_chat_do_not_show(replies, template, messages, wanted):
    assert [reply.strip() for reply in replies(template, messages)] == wanted


def test_weights_of_messages(replies):
    messages = chat("q", "one", "q", "two", "q", "three")
    messages[1]["weight"] = 0
    messages[3] |= {"weight": 1, "train": True}
    assert replies(CHATML, messages) == ["two<|im_end|>", "three<|im_end|>"]
    messages[5]["train"] = False
    assert replies(CHATML, messages) == ["two<|im_end|>"]
    messages[2]["train"] = True
    assert replies(CHATML, messages) == ["q<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize("wrong", [{"weight": 0.5}, {"weight": -1}, {"train": "yes"}])
def test_other_weights_are_refused(replies, wrong):
    messages = [*chat("q"), {"role": "assistant", "content": "a", **wrong}]
    with pytest.raises(UserError, match=r"data.jsonl:1: message 1: (weight|train) is .*, expected"):
        replies(CHATML, messages)


def test_roles_to_train(replies):
    messages = [*chat("q", "a"), {"role": "critic", "content": "bad"}]
    assert replies(CHATML, messages, {"roles_to_train": ["critic"]}) == ["bad<|im_end|>"]
    assert replies(CHATML, messages, {"roles_to_train": ["critic", "assistant"]}) == ["a<|im_end|>", "bad<|im_end|>"]


def test_what_is_left_out_of_a_reply_is_counted_and_said(render, caplog):
    stripped = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    chatted = render(stripped, chat("q", "<think>long thoughts</think>one", "q", "two"))
    assert (chatted.cut_replies, [chatted.text[a:b] for a, b in chatted.spans]) == (
        1,
        ["one<|im_end|>", "two<|im_end|>"],
    )
    assert "message 1: the chat template omits <think> ('long thoughts')" in caplog.text
    messages = chat("q", "one")
    messages[1]["reasoning_content"] = "why"
    assert render(CHATML, messages).cut_replies == 1
    assert "omits reasoning_content ('why')" in caplog.text
    assert render(CHATML, chat("q", "one")).cut_replies == 0


def test_a_lost_call_is_counted(render):
    assert render(CHATML, calling("I look.", {})).cut_replies == 1
    with pytest.raises(UserError, match=r"message 1: the chat template does not render this reply .*'weather'"):
        render(CHATML, calling("", {}))


def test_a_template_that_takes_parts_only(replies):
    template = (
        "{% for m in messages %}{{ m.role + ': ' }}{% for part in m.content %}{{ part.text }}{% endfor %}{{ '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert replies(template, chat("q", "one")) == ["one</s>"]


def test_generation_marks_decide(replies):
    template = (
        "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{{ '</s>' }}{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert replies(template, chat("q", "one", "q", "two")) == ["one", "two"]
    assert replies(template, [*chat("q"), {"role": "assistant", "content": "a", "weight": 0}, *chat("q", "b")]) == ["b"]


def test_a_template_of_ones_own(replies, tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN)
    assert replies(CHATML, chat("q", "one"), {"chat_template": str(tmp_path / "own.jinja")}) == [" one"]
    with pytest.raises(UserError, match=r"corpus.chat_template: .*no.jinja: No such file"):
        replies(CHATML, chat("q", "one"), {"chat_template": str(tmp_path / "no.jinja")})
    (tmp_path / "broken.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match=r"chat template .*broken.jinja: line 1: "):
        replies(CHATML, chat("q", "one"), {"chat_template": str(tmp_path / "broken.jinja")})


def test_named_templates(replies):
    named = {"default": CHATML, "tool_use": WITH_CALLS, "plain": PLAIN}
    assert replies(named, chat("q", "one")) == ["one<|im_end|>"]
    assert replies(named, chat("q", "one"), {"chat_template": "plain"}) == [" one"]
    assert "<call>" in replies(named, calling("", {}), tools=[WEATHER])[0]
    with pytest.raises(UserError, match=r"data.jsonl:1: .*no default.*corpus.chat_template"):
        replies({"plain": PLAIN}, chat("q", "one"))


def test_variables_that_are_the_chats_own_are_refused(render):
    with pytest.raises(UserError, match=r"data.jsonl:1: chat_template_kwargs sets 'messages'"):
        render(CHATML, chat("q", "a"), template_kwargs={"messages": []})
    with pytest.raises(ValueError, match="add_generation_prompt: comes from each record"):
        render(CHATML, chat("q", "a"), {"chat_template_kwargs": {"add_generation_prompt": True}})


def test_parts_of_reasoning_that_are_no_text_are_passed_on(render):
    template = (
        "{% for m in messages %}[{{ m.content }}]{% for p in m.reasoning %}{{ p.summary }}{% endfor %}{% endfor %}"
    )
    messages = chat("hi", "ho")
    messages[1]["reasoning"] = [{"summary": "s"}, {"text": None}]
    found = render(template, messages)
    assert found.text == "[hi][ho]s"
