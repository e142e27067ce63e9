import json
from pathlib import Path
from typing import Any

import pytest

from schemas.generate_config import PromptsConfig
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.corpus.prompt_documents import read_prompts

USER = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "So."}


def read(folder: Path, record: dict[str, Any], source: dict[str, Any] | None = None, **settings: Any) -> Any:
    path = folder / "prompts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    config = PromptsConfig.model_validate({"sources": [{"path": str(path), **(source or {})}], **settings})
    (document,) = read_prompts(config)
    return document


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [USER]}, [USER]),
        ({"messages": [USER, REPLY, USER]}, [USER, REPLY, USER]),
        ({"messages": [{**USER, "weight": 0}]}, [USER]),
        ({"prompt": "Why?"}, [USER]),
        ({"prompt": [USER]}, [USER]),
        ({"prompt": "Why?", "system": "Brief."}, [{"role": "system", "content": "Brief."}, USER]),
        ({"instruction": "Why?"}, [USER]),
        ({"instruction": "Why?", "input": "x", "output": ""}, [{"role": "user", "content": "Why?\nx"}]),
        ({"conversations": [{"from": "human", "value": "Why?"}]}, [USER]),
        ({"text": "Why?\u0000"}, [USER]),
        ({"prompt": "Why?", "completion": ""}, [USER]),
    ],
)
def test_shapes(tmp_path: Path, record: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert read(tmp_path, record).messages == messages


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, REPLY]},
        {"prompt": "Why?", "completion": "So."},
        {"instruction": "Why?", "output": "So."},
        {"prompt": [USER], "completion": [REPLY]},
        {"messages": [USER, REPLY, REPLY]},
    ],
)
def test_a_reply_at_the_end_is_refused_or_replaced(tmp_path: Path, record: dict[str, Any]) -> None:
    refused = read(tmp_path, record)
    assert isinstance(refused, BadRecord)
    assert refused.reason == "answered"
    assert "prompts.jsonl" in str(refused)
    assert "set prompts.replies: replace" in str(refused)
    assert read(tmp_path, record, replies="replace").messages == [USER]


def test_tools_and_template_arguments_are_kept(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    document = read(tmp_path, {"prompt": "Why?", "tools": tools, "chat_template_kwargs": {"thinking": False}})
    assert document.tools == tools
    assert document.template_kwargs == {"thinking": False}


def test_texts_can_be_continued(tmp_path: Path) -> None:
    document = read(tmp_path, {"prompt": "1 + 1 =", "completion": " 2"}, text="continue", replies="replace")
    assert (document.messages, document.text, document.prompt_chars) == (None, "1 + 1 =", 0)


@pytest.mark.parametrize("record", [{"prompt": " \n"}, {"messages": []}, {"messages": [{**USER, "content": " "}]}])
def test_empty_records(tmp_path: Path, record: dict[str, Any]) -> None:
    document = read(tmp_path, record)
    assert (document.text, document.messages) == ("", None)


def test_a_configured_shape_is_the_only_one(tmp_path: Path) -> None:
    record = {"prompt": "Why?", "instruction": "How?"}
    assert read(tmp_path, record, {"shape": "alpaca"}).messages == [{"role": "user", "content": "How?"}]
    assert isinstance(read(tmp_path, record, {"shape": "messages"}), BadRecord)
