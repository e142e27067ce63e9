import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cache_config import SourceConfig
from teacher_cache.corpus.messages import without_nulls
from teacher_cache.corpus.sources import BadRecord, read_documents

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def read(tmp_path):
    """Documents and bad records, read from JSON lines of these records."""

    def read(*records, **settings):
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(read_documents(SourceConfig(path=str(path), **settings), "corpus.sources.0"))

    return read


def only(items):
    (item,) = items
    if isinstance(item, BadRecord):
        raise item
    return item


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"messages": CHAT}, CHAT),
        ({"messages": json.dumps(CHAT)}, CHAT),
        ({"messages": SHAREGPT}, CHAT),
        ({"conversations": SHAREGPT}, CHAT),
        ({"conversations": CHAT}, CHAT),
        ({"conversation": json.dumps(SHAREGPT)}, CHAT),
        ({"instruction": "q", "input": "", "output": "a"}, CHAT),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, [("user", "Add.\n1, 2"), ("assistant", "3")]),
        ({"instruction": "Add.", "context": "1, 2", "response": "3"}, [("user", "Add.\n1, 2"), ("assistant", "3")]),
        ({"system": "Be brief.", "messages": CHAT}, [("system", "Be brief."), *CHAT]),
        ({"system": "No.", "messages": [{"role": "system", "content": "Yes."}, *CHAT]}, [("system", "Yes."), *CHAT]),
        ({"system": "Be brief.", "instruction": "q", "output": "a"}, [("system", "Be brief."), *CHAT]),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT),
        ({"prompt": CHAT[:1], "completion": "a"}, CHAT),
        ({"prompt": "q", "completion": CHAT[1:]}, CHAT),
        (
            {"messages": [{**CHAT[0], "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]},
            [("user", "one two")],
        ),
    ],
)
def test_chats(read, record, wanted):
    pairs = [turn if isinstance(turn, tuple) else (turn["role"], turn["content"]) for turn in wanted]
    document = only(read(record))
    assert [(message["role"], message["content"]) for message in document.messages] == pairs
    assert (document.text, document.prompt_chars, document.tools) == ("", 0, None)


def test_roles_of_sharegpt(read):
    turns = [
        ("system", "s"),
        ("human", "u"),
        ("function_call", json.dumps(WEATHER["function"])),
        ("observation", "rain"),
        ("gpt", "a"),
    ]
    document = only(read({"conversations": [{"from": who, "value": said} for who, said in turns]}))
    assert document.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "tool_calls": [WEATHER]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "a"},
    ]


def test_other_keys_of_messages_are_kept(read):
    reply = {"role": "assistant", "content": "a", "weight": 0, "train": False, "reasoning_content": "hm", "name": "x"}
    assert only(read({"messages": [CHAT[0], reply]})).messages == [CHAT[0], reply]
    turn = {"from": "gpt", "value": "a", "weight": 0}
    assert only(read({"conversations": [turn]})).messages == [{"role": "assistant", "content": "a", "weight": 0}]


def test_of_a_prompt_and_a_completion_only_the_completion_is_learned(read):
    document = only(read({"prompt": "1 + 1 =", "completion": " 2"}))
    assert (document.text, document.prompt_chars, document.messages) == ("1 + 1 = 2", 7, None)
    prompt = [*CHAT, {"role": "user", "content": "r"}]
    document = only(read({"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]}))
    assert [message.get("train", True) for message in document.messages] == [True, False, True, True]


def test_a_history_is_read_and_not_learned(read):
    document = only(read({"instruction": "r", "output": "b", "history": [["q", "a"]]}))
    assert document.messages == [
        CHAT[0],
        {**CHAT[1], "train": False},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_documents_and_template_arguments(read, tools):
    record = {"tools": tools, "documents": [{"text": "d"}], "chat_template_kwargs": {"enable_thinking": False}}
    for chat in ({"messages": CHAT}, {"conversations": SHAREGPT}, {"instruction": "q", "output": "a"}):
        document = only(read({**record, **chat}))
        assert (document.tools, document.documents) == ([TOOL], [{"text": "d"}])
        assert document.template_kwargs == {"enable_thinking": False}
    for nothing in (None, [], "", "[]"):
        assert only(read({"messages": CHAT, "tools": nothing})).tools is None


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [WEATHER]},
        {"tool_calls": json.dumps([WEATHER])},
        {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}},
        {"tool_calls": [{**WEATHER, "function": {"name": "weather", "arguments": {"city": "Bern", "unit": None}}}]},
    ],
)
@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_tool_calls_without_content(read, call, content):
    document = only(read({"messages": [CHAT[0], {"role": "assistant", **content, **call}]}))
    assert document.messages[1] == {"role": "assistant", "tool_calls": [WEATHER]}


def test_nulls_that_parquet_added_are_dropped_at_any_depth(tmp_path):
    other = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "of": {"b": 2}}}}
    records = [
        {
            "messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}],
            "tools": [{"name": call["function"]["name"]}],
        }
        for call in (WEATHER, other)
    ]
    records[1]["tools"][0]["strict"] = True
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    documents = list(read_documents(SourceConfig(path=str(tmp_path / "d.parquet")), "s"))
    assert [{"messages": d.messages, "tools": d.tools} for d in documents] == records


trees = st.recursive(
    st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(trees)
def test_without_nulls_keeps_all_else(value):
    def has_null(value):
        values = value.values() if isinstance(value, dict) else []
        inner = value if isinstance(value, list) else values
        return any(v is None for v in values) or any(map(has_null, inner))

    cleaned = without_nulls(value)
    assert not has_null(cleaned)
    if not has_null(value):
        assert cleaned == value


def test_a_null_that_the_author_wrote_into_json_stays(read):
    call = json.dumps({"name": "weather", "arguments": {"unit": None}})
    document = only(read({"conversations": [{"from": "function_call", "value": call}]}))
    assert document.messages[0]["tool_calls"][0]["function"]["arguments"] == {"unit": None}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"body": "x", "id": 1}, r"\['body', 'id'\], expected .*: messages \(messages\); sharegpt \(conv"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            r"messages\[0\]\.content\[0\] is of type 'image_url', expected text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, r"content\[0\] is dict"),
        (
            {"messages": [{"role": "user", "content": None}]},
            r"messages\[0\]\.content is NoneType None, expected a string",
        ),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, r"messages\[0\]\.content is dict"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]\.role is NoneType None"),
        ({"messages": "[{"}, "messages is str '\\[{', which is not JSON"),
        ({"messages": {"role": "user"}}, "messages is dict .*expected a list"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            r"tool_calls holds dict \{\}, expected \{name",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, r"tool_calls is int 5"),
        (
            {"conversations": [{"from": "martian", "value": "x"}]},
            r"conversations\[0\]\.from is str 'martian', expected one of human",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "f(x)"}]},
            r"tool_calls is str 'f\(x\)', which is not JSON",
        ),
        ({"instruction": 5, "output": "x"}, "instruction is int 5, expected a string"),
        ({"instruction": "x", "output": ["y"]}, "output is list"),
        ({"instruction": "x", "output": "y", "history": 7}, r"history\[0\] is int 7"),
        ({"prompt": 5, "completion": "x"}, "prompt is int 5"),
        ({"messages": CHAT, "tools": 5}, "tools is int 5, expected a list"),
        ({"messages": CHAT, "tools": [5]}, r"tools\[0\] is int 5, expected an object"),
        ({"messages": CHAT, "chat_template_kwargs": "[]"}, r"chat_template_kwargs is list \[\], expected an object"),
        ({"messages": CHAT, "system": 5}, "system is int 5"),
        ({"text": 5}, "text is int 5"),
    ],
)
def test_a_bad_record_is_one_line_and_the_next_one_is_read(read, record, message):
    bad, good = read(record, {"text": "good"})
    assert isinstance(bad, BadRecord)
    with pytest.raises(BadRecord, match=r"d\.jsonl:1: .*" + message):
        raise bad
    assert good.text == "good"


def test_values_nested_deeper_than_python_can_follow(read, tmp_path):
    deep = {"messages": [{"role": "user", "content": "q", "x": json.loads("[" * 90 + "]" * 90)}]}
    assert only(read(deep)).messages[0]["role"] == "user"
    lines = ['{"messages": [{"role": "user", "content": "q", "x": ' + "[" * 900 + "]" * 900 + "}]}", '{"text": "good"}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    items = list(read_documents(SourceConfig(path=str(tmp_path / "d.jsonl")), "s"))
    assert isinstance(items[0], BadRecord)
    assert items[1].text == "good"


def test_the_first_shape_wins_and_where_it_is_null_the_next(read):
    record = {"text": "t", "messages": CHAT, "instruction": "i", "output": "o"}
    assert only(read(record)).messages == CHAT
    assert only(read({**record, "messages": None})).messages[0]["content"] == "i"
    assert only(read(record, shape="text")).text == "t"
    assert only(read(record, shape="alpaca")).messages[1]["content"] == "o"
    with pytest.raises(BadRecord, match=r"expected those of one of: sharegpt \("):
        only(read(record, shape="sharegpt"))
    empty = only(read({"text": None, "messages": None}))
    assert (empty.text, empty.messages) == ("", None)


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def test_what_is_found_is_said_once(read, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    read(*[{"messages": CHAT, "text": None, "id": 1}] * 3, {"id": 1, "url": "u", "text": "x"})
    assert said(caplog) == [
        "corpus.sources.0: d.jsonl is read as jsonl",
        "corpus.sources.0: records are read as messages; they also fit text (set `shape` to choose)",
        "corpus.sources.0: ignored columns: id",
        "corpus.sources.0: records are read as text",
        "corpus.sources.0: ignored columns: url",
    ]


def test_an_output_taken_as_text_names_the_instruction_that_is_not_read(read, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    record = {"instruction": "i", "input": "", "output": "o"}
    assert only(read(record, text_field="output")).messages[0]["content"] == "i"  # still an Alpaca record
    caplog.clear()
    assert only(read(record, text_field="output", shape="text")).text == "o"
    assert "corpus.sources.0: ignored columns: instruction, input" in said(caplog)


def test_tools_beside_a_prompt_of_text_are_named(read, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    read({"prompt": "p", "completion": "c", "tools": [TOOL]})
    assert "corpus.sources.0: ignored columns: tools" in said(caplog)


def test_ever_new_columns_do_not_fill_the_log(read, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    assert len(read(*({"text": "x", f"column {n}": n} for n in range(3000)))) == 3000
    assert len(caplog.records) == 50
    assert said(caplog)[-1].endswith("; further messages about this source are suppressed")
