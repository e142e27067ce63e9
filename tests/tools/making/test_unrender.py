"""Chats found again in their rendered texts: the records are those of the plan, or nothing is claimed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.chat_record import ChatRecord
from teacher_cache.corpus import Corpus
from teacher_cache.records import TokenSample
from tools.making.turn_marks import Mark, Said
from tools.making.unrender import Outcome, Unrenderer

# In the manner of well-known templates.
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_HEADER_FOR_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|user|>{{ m.content }}{% else %}<|assistant|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM_IN_FIRST_TURN = (
    "{% if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ head if loop.first else '' }}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set said = m.content %}{% set thought = m.reasoning_content or '' %}{% if '</think>' in said and not thought %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
WORDS = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:{% elif m.role == 'assistant' %} "
    "{{ m.content }}{{ eos_token }}{% else %}{{ m.content }} {% endif %}{% endfor %}"
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
)
TOOLS_IN_WORDS = (
    "{% if tools %}<|im_start|>system\nYou may call these functions:\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
    '{"function": {{ c.function.name | tojson }}, "with": {{ c.function.arguments | tojson }}}{% endfor %}'
    "<|im_end|>\n{% endfor %}"
)
TEMPLATES = {
    "default system": DEFAULT_SYSTEM,
    "no header for system": NO_HEADER_FOR_SYSTEM,
    "system in the first turn": SYSTEM_IN_FIRST_TURN,
    "thinks": THINKS,
    "marked": MARKED,
    "words": WORDS,
    "with tools": WITH_TOOLS,
}


def user(said: str) -> dict[str, Any]:
    return {"role": "user", "content": said}


def reply(said: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": said, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Why?"), reply("Because.")],
    "turns": [user("Why?"), reply("Because."), user("user"), reply("assistant"), user("And\n\nthen?"), reply("End.")],
    "system": [SYSTEM, user("Why?"), reply("Because."), user("And?"), reply("So.")],
    "characters": [user("Où est 東京 😀?"), reply("Là-bas 😀\n\nvoilà")],
    "code": [user("f:\n```\nx < 2 > 1\n```"), reply("```\ndef f(x):\n    return [x]\n```\nuser: no")],
    "not trained on": [user("Why?"), reply("Because.", weight=0), user("And?"), reply("So.")],
    "empty": [user("Why?"), reply(""), user("And?"), reply("So.")],
    "empty, not trained on": [user("Why?"), reply("", weight=0), user("And?"), reply("So.")],
}


def byte_tokenizer(template: str) -> Any:
    """One token a byte, and markup as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    names = ("im_start", "im_end", "system", "user", "assistant")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.chat_template = template
    return tokenizer


Make = Callable[..., list[TokenSample]]


@pytest.fixture
def samples(tmp_path: Path) -> Make:
    """The samples that a plan makes of records, each with its chat's record."""

    def make(tokenizer: Any, records: list[dict[str, Any]], **settings: Any) -> list[TokenSample]:
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(Corpus(corpus(str(tmp_path / "c.jsonl"), **settings), tokenizer))

    return make


def corpus(path: str = "unused", **settings: Any) -> CorpusConfig:
    return CorpusConfig(sources=[SourceConfig(path=path)], **{"max_tokens": 1 << 12, **settings})


def read(unrenderer: Unrenderer, sample: TokenSample) -> tuple[bytes, Outcome]:
    record, outcome = unrenderer.read(replace(sample, chat=b""))
    return b"" if record is None else record.to_json(), outcome


@pytest.mark.parametrize("template", TEMPLATES)
def test_records_are_those_of_the_plan(samples: Make, template: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[template])
    made = samples(tokenizer, [{"messages": chat} for chat in CHATS.values()])
    unrenderer = Unrenderer(tokenizer, corpus())
    for sample, name in zip(made, CHATS, strict=True):
        assert read(unrenderer, sample) == (sample.chat, Outcome.PROVEN), (name, sample.text)


@pytest.mark.parametrize("template", ["default system", "no header for system", "thinks", "marked"])
def test_cut_chats_have_the_records_of_the_plan(samples: Make, template: str) -> None:
    """At every token; in the middle of characters, headers and ends of turns."""
    tokenizer = byte_tokenizer(TEMPLATES[template])
    unrenderer = Unrenderer(tokenizer, corpus())
    chat = {"messages": [user("Why?"), reply("Là 😀."), user("And?"), reply("So, < 3.")]}
    (whole,) = samples(tokenizer, [chat])
    cut = 0
    for length in range(int(np.flatnonzero(whole.loss_mask)[0]) + 2, len(whole.input_ids), 2):
        (sample,) = samples(tokenizer, [chat], max_tokens=length)
        assert read(unrenderer, sample) == (sample.chat, Outcome.PROVEN), sample.text
        cut += len(sample.input_ids) < len(whole.input_ids)
    assert cut > 10


def test_reasoning_is_told_from_what_is_said(samples: Make) -> None:
    tokenizer = byte_tokenizer(THINKS)
    chat = [user("Why?"), reply("Because.", reasoning_content="let me\n\nsee")]
    made = samples(tokenizer, [{"messages": chat}, {"messages": [user("Why?"), reply("<think>\nhm\n</think>\n\nSo.")]}])
    unrenderer = Unrenderer(tokenizer, corpus())
    assert read(unrenderer, made[0]) == (made[0].chat, Outcome.PROVEN)
    record, outcome = unrenderer.read(made[1])  # both forms render to this text
    assert outcome is Outcome.PROVEN
    assert record is not None
    assert record.messages[1].restored(made[1].text.encode()) == reply("So.", reasoning_content="hm")


def test_a_default_system_message_is_the_templates_own(samples: Make) -> None:
    tokenizer = byte_tokenizer(DEFAULT_SYSTEM)
    given = {"role": "system", "content": "You help."}
    (sample,) = samples(tokenizer, [{"messages": [given, *CHATS["one turn"]]}])
    record, outcome = Unrenderer(tokenizer, corpus()).read(sample)
    assert outcome is Outcome.PROVEN
    assert record is not None
    assert [message.role for message in record.messages] == ["user", "assistant"]


def test_roles_that_are_trained_on_follow_the_settings_and_the_mask(samples: Make) -> None:
    tokenizer = byte_tokenizer(DEFAULT_SYSTEM)
    settings = {"roles_to_train": ["user"]}
    chats = [CHATS["turns"], [user("a"), reply("b", train=True), {**user("c"), "train": False}, reply("d")]]
    for sample in samples(tokenizer, [{"messages": chat} for chat in chats], **settings):
        assert read(Unrenderer(tokenizer, corpus(**settings)), sample) == (sample.chat, Outcome.PROVEN)


def test_texts_are_no_chats_even_if_they_begin_like_one(samples: Make) -> None:
    tokenizer = byte_tokenizer(DEFAULT_SYSTEM)
    made = samples(
        tokenizer,
        [
            {"text": "Plain."},
            {"text": "<|im_start|>user\nWhy?<|im_end|>\n"},
            {"prompt": "Why? ", "completion": "Because."},
        ],
    )
    unrenderer = Unrenderer(tokenizer, corpus())
    assert [read(unrenderer, sample) for sample in made] == [(b"", Outcome.PLAIN)] * 3


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("template", [WITH_TOOLS, TOOLS_IN_WORDS])
def test_calls_of_tools_are_refused(samples: Make, template: str) -> None:
    """Their text would be taught as if the student had to say it in the teacher's form."""
    tokenizer = byte_tokenizer(template)
    called = [user("1 + 1"), reply("", tool_calls=[CALL]), {"role": "tool", "content": "2"}, reply("2")]
    made = samples(tokenizer, [{"messages": called}, {"messages": CHATS["one turn"], "tools": TOOLS}])
    unrenderer = Unrenderer(tokenizer, corpus())
    assert [read(unrenderer, sample) for sample in made] == [(b'{"messages":[]}', Outcome.TOOLS)] * 2


def test_what_is_not_the_same_again_is_not_claimed(samples: Make) -> None:
    """A changed text, mask or token, a role that nothing is known of, a template that refuses its own chats."""
    tokenizer = byte_tokenizer(DEFAULT_SYSTEM)
    unrenderer = Unrenderer(tokenizer, corpus())
    (sample,) = samples(tokenizer, [{"messages": CHATS["turns"]}])
    mask = sample.loss_mask.copy()
    mask[np.flatnonzero(mask)[2]] = False
    assert read(unrenderer, replace(sample, loss_mask=mask))[1] is Outcome.MASK
    ids = sample.input_ids.copy()
    ids[-1] += 1
    assert read(unrenderer, replace(sample, input_ids=ids))[1] is Outcome.TOKENS
    (strange,) = samples(tokenizer, [{"messages": [user("a"), {"role": "critic", "content": "b"}, reply("c")]}])
    assert read(unrenderer, strange)[1] is Outcome.MARKUP
    trims = byte_tokenizer(DEFAULT_SYSTEM.replace("m.content", "m.content | trim"))
    (spaced,) = samples(tokenizer, [{"messages": [user("a"), reply(" b ")]}])
    assert read(Unrenderer(trims, corpus()), spaced)[1] is Outcome.TEXT
    lost = byte_tokenizer("{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}" + DEFAULT_SYSTEM)
    assert read(Unrenderer(lost, corpus()), sample)[1] is Outcome.REFUSED
    none = byte_tokenizer(DEFAULT_SYSTEM)
    none.chat_template = None
    assert read(Unrenderer(none, corpus()), sample) == (b'{"messages":[]}', Outcome.FORM)


def test_the_settings_of_the_corpus_reach_the_template(samples: Make) -> None:
    tokenizer = byte_tokenizer("{{ tone }}\n" + DEFAULT_SYSTEM)
    settings = {"chat_template_kwargs": {"tone": "calm"}}
    (sample,) = samples(tokenizer, [{"messages": CHATS["one turn"]}], **settings)
    assert read(Unrenderer(tokenizer, corpus(**settings)), sample) == (sample.chat, Outcome.PROVEN)
    assert read(Unrenderer(tokenizer, corpus()), sample)[1] is not Outcome.PROVEN


def test_the_marks_of_a_template() -> None:
    """What is learned of the smallest one, and what is not: blanks alone tell no texts apart."""
    marks = Unrenderer(byte_tokenizer(WORDS), corpus())._marks
    assert marks is not None
    assert marks.reasoning is None
    assert marks.after[None][0] == Mark(b"USER: ", Said("user", "content"), True)
    assert Mark(b" ASSISTANT: ", Said("assistant", "content"), True) in marks.after[Said("user", "content")]
    assert Mark(b" ", Said("assistant", "content"), True) not in marks.after[Said("tool", "content")]
    assert Mark(b"</s>", None, False) in marks.after[Said("assistant", "content")]
    of_tools = Unrenderer(byte_tokenizer(WITH_TOOLS), corpus())._marks.of_tools  # type: ignore[union-attr]
    assert {b"<tools>", b"</tools>", b"<tool_call>", b"</tool_call>"} < of_tools


def test_records_hold_no_messages_where_nothing_is_proven() -> None:
    assert ChatRecord(messages=[]).to_json() == b'{"messages":[]}'
