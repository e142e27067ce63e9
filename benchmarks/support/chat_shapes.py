"""Shapes of chats found in data sets. Every text is a unique word, so that it can be located in the rendering."""

import re
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
WORD = re.compile("zq[a-z]+?(?=zq|[^a-z]|$)")
WEATHER = {
    "type": "function",
    "function": {
        "name": "zqweather",
        "description": "zqtooltext",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "zqcitytext"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Shape:
    """A record of a data set."""

    name: str
    messages: list[Message]
    learned: list[int]  # messages in the loss
    record: dict[str, Any] = field(default_factory=dict)  # other keys of the record


def _user(word: str) -> Message:
    return {"role": "user", "content": f"{word} {word}ask"}


def _reply(word: str, **more: Any) -> Message:
    return {"role": "assistant", "content": f"{word} {word}more", **more}


def _call(city: str, number: str) -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": "zqweather", "arguments": {"city": city}}}


def _result(word: str, number: str) -> Message:
    return {"role": "tool", "name": "zqweather", "tool_call_id": number, "content": word}


def _calling(content: str | None, *calls: dict[str, Any]) -> list[Message]:
    results = [_result(f"zqresult{chr(97 + i)}", call["id"]) for i, call in enumerate(calls)]
    caller = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    return [_user("zqone"), caller, *results, _reply("zqend")]


ONE = _call("zqbern", "callaaaa1")
TWO = _call("zqoslo", "callaaaa2")
TOOLS = {"tools": [WEATHER]}
SHAPES = [
    Shape("one turn", [_user("zqone"), _reply("zqa")], [1]),
    Shape("several turns", [_user("zqone"), _reply("zqa"), _user("zqtwo"), _reply("zqb")], [1, 3]),
    Shape(
        "system",
        [{"role": "system", "content": "zqsystem"}, _user("zqone"), _reply("zqa"), _user("zqtwo"), _reply("zqb")],
        [2, 4],
    ),
    Shape("tools, none called", [_user("zqone"), _reply("zqa")], [1], TOOLS),
    Shape("one call", _calling("", ONE), [1, 3], TOOLS),
    Shape("parallel calls", _calling("", ONE, TWO), [1, 4], TOOLS),
    Shape("call with null content", _calling(None, ONE), [1, 3], TOOLS),
    Shape("call with text", _calling("zqlook", ONE), [1, 3], TOOLS),
    Shape(
        "thoughts in the last turn",
        [
            _user("zqone"),
            _reply("zqa"),
            _user("zqtwo"),
            {**_reply("zqb"), "content": "<think>\nzqmuse\n</think>\n\nzqb"},
        ],
        [1, 3],
    ),
    Shape(
        "thoughts in all turns",
        [
            _user("zqone"),
            _reply("zqa", reasoning_content="zqmusea"),
            _user("zqtwo"),
            _reply("zqb", reasoning_content="zqmuseb"),
        ],
        [1, 3],
    ),
    Shape(
        "thinking off",
        [_user("zqone"), _reply("zqa"), _user("zqtwo"), _reply("zqb")],
        [1, 3],
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    Shape("user last", [_user("zqone"), _reply("zqa"), _user("zqtwo")], [1]),
    Shape("empty reply", [_user("zqone"), {"role": "assistant", "content": ""}, _user("zqtwo"), _reply("zqb")], [1, 3]),
    Shape(
        "leading blanks",
        [_user("zqone"), {"role": "assistant", "content": "  \n zqa"}, _user("zqtwo"), _reply("zqb")],
        [1, 3],
    ),
    Shape(
        "two replies in a row", [_user("zqone"), _reply("zqa"), _reply("zqb"), _user("zqtwo"), _reply("zqc")], [1, 2, 4]
    ),
    Shape("weight 0", [_user("zqone"), _reply("zqa", weight=0), _user("zqtwo"), _reply("zqb", weight=1)], [3]),
    Shape("train false", [_user("zqone"), _reply("zqa"), _user("zqtwo"), _reply("zqb", train=False)], [1]),
    Shape(
        "documents",
        [_user("zqone"), _reply("zqa")],
        [1],
        {"documents": [{"title": "zqtitle", "text": "zqdocument", "doc_id": "1"}]},
    ),
    Shape(
        "parts",
        [
            {"role": "user", "content": [{"type": "text", "text": "zqone zqoneask"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "zqa zqamore"}]},
        ],
        [1],
    ),
]


def words(value: Any) -> set[str]:
    """The marked words in a message or a record."""
    if isinstance(value, str):
        return set(WORD.findall(value))
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {word for item in items for word in words(item)}
