import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from schemas.chat_record import ChatRecord
from schemas.errors import UserError
from schemas.generate_config import PromptsConfig
from support.models import tiny_tokenizer
from support.other_tokenizers import NO_SYSTEM, other_tokenizer
from teacher_cache.generated.reply_files import Prompt
from teacher_cache.generation.prompt_reader import PromptReader

TOKENIZER = tiny_tokenizer()


def reader(folder: Path, records: list[Any], tokenizer: Any = TOKENIZER, **settings: Any) -> PromptReader:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return PromptReader(PromptsConfig.model_validate({"sources": [{"path": str(path)}], **settings}), tokenizer)


def prompts(folder: Path, *records: Any, **settings: Any) -> list[Prompt]:
    return list(reader(folder, list(records), **settings))


def test_chats_are_rendered_with_the_generation_prompt_and_kept(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be 🦜."}, {"role": "user", "content": "Why?"}]
    (prompt,) = prompts(tmp_path, {"messages": messages})
    wanted = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.prompt == wanted
    assert prompt.prompt.endswith("<|im_start|>assistant\n")
    assert prompt.prompt_ids.tolist() == TOKENIZER(wanted)["input_ids"]
    record = ChatRecord.model_validate_json(prompt.chat)
    assert [message.restored(prompt.prompt.encode()) for message in record.messages] == messages
    assert all(message.spans and not message.learned for message in record.messages)
    assert (prompt.source_id, prompt.layer) == ("prompts.jsonl#1", "base")


def test_texts_are_continued_after_the_leading_special_tokens(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<|im_start|>", eos_token="<|endoftext|>"
    )
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    found = list(reader(tmp_path, [{"text": "<|im_start|>def f"}, {"text": "def g"}], tokenizer, text="continue"))
    assert [prompt.prompt for prompt in found] == ["def f", "def g"]
    assert [prompt.prompt_ids.tolist() for prompt in found] == [
        tokenizer("def f").input_ids,
        tokenizer("def g").input_ids,
    ]
    assert [prompt.prompt_ids[0] for prompt in found] == [1, 1]
    assert [prompt.chat for prompt in found] == [b"", b""]


def test_keys_are_of_the_content_not_of_the_rendering(tmp_path: Path) -> None:
    records = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}, {"prompt": "a", "tools": [{"x": 1}]}]
    one = prompts(tmp_path, *records)
    other = list(reader(tmp_path, records, other_tokenizer()))
    assert [prompt.key for prompt in one] == [prompt.key for prompt in other]
    assert one[0].prompt != other[0].prompt
    assert len({prompt.key for prompt in one}) == 3


def test_what_becomes_of_each_record_is_counted(tmp_path: Path) -> None:
    records = [
        {"prompt": "a"},
        {"prompt": "a"},
        {"prompt": " "},
        {"prompt": "long " * 100},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},
        {"messages": 3},
        "no object",
    ]
    tokenizer = other_tokenizer(template=NO_SYSTEM)
    found = reader(tmp_path, records, tokenizer, max_tokens=60, on_bad_record="drop")
    assert len(list(found)) == 1
    counts = found.counts.model_dump()
    assert counts.pop("tokens") > 0
    assert counts == {
        "documents": 8, "empty": 1, "duplicates": 1, "too_long": 1, "answered": 1, "malformed": 2, "refused": 1,
        "prompts": 1,
    }  # fmt: skip


def test_equal_prompts_may_be_kept_apart(tmp_path: Path) -> None:
    found = prompts(tmp_path, {"prompt": "a"}, {"prompt": "a"}, deduplicate=False)
    assert len({prompt.key for prompt in found}) == 2
    assert found[0].key == prompts(tmp_path, {"prompt": "a"})[0].key


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([{"prompt": " "}], {}, "prompts.sources: no prompt in 1 records: 1 empty; check"),
        ([{"prompt": "long " * 99}], {"max_tokens": 9}, "no prompt in 1 records: 1 too_long; check"),
        ([{"question": "a"}], {}, "the record's fields are ['question']"),
        ([{"messages": [{"role": "user"}]}], {}, "prompts.jsonl:1: messages[0].content is NoneType None"),
        ([{"prompt": "a"}], {"chat_template": "none.jinja"}, "prompts.chat_template: none.jinja"),
        (
            [{"messages": [{"role": "tool", "content": "gone"}]}],
            {"chat_template": "drop"},
            "message 0: the chat template does not render this reply ('gone'); set another prompts.chat_template",
        ),
    ],
)
def test_bad_prompts_are_errors_of_one_line(
    tmp_path: Path, records: list[Any], settings: dict[str, Any], message: str
) -> None:
    if settings.get("chat_template") == "drop":
        (tmp_path / "drop.jinja").write_text(
            "{% for m in messages %}{% if m.role == 'user' %}x{% endif %}{% endfor %}y"
        )
        settings = {"chat_template": str(tmp_path / "drop.jinja")}
    with pytest.raises(UserError) as caught:
        prompts(tmp_path, *records, **settings)
    assert message in str(caught.value)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match=r"no chat template; set prompts\.chat_template, use a model that has one"):
        list(reader(tmp_path, [{"prompt": "a"}], tokenizer))
    assert len(list(reader(tmp_path, [{"prompt": "a"}], tokenizer, text="continue"))) == 1
