import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.content_parts import Part
from teacher_cache.corpus.readers import json_values
from teacher_cache.corpus.sources import BadRecord, read_documents

RECORDS = [{"text": text} for text in ("one", 'two "quoted" [1, 2] {', "drei é 日 😀\n", "\\", "")]


def read(path, data, **options):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_documents(SourceConfig(path=str(path), **options), "s"))


@pytest.fixture(params=[1, 7, 1 << 16])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_values, "_CHUNK_CHARACTERS", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "\ufeff \n" + json.dumps(RECORDS) + "\n\n",
        "".join(json.dumps(record) + "\n" for record in RECORDS),
        "\n".join(json.dumps(record, indent=1) for record in RECORDS),
        "".join(json.dumps(record) for record in RECORDS),
    ],
)
def test_arrays_and_objects_one_after_the_other(tmp_path, text):
    for name, format in (("d.json", "auto"), ("d.txt", "json")):
        documents = read(tmp_path / name, text, format=format)
        assert [document.text for document in documents] == [record["text"] for record in RECORDS]
        assert [document.source_id for document in documents] == [f"{name}#{n}" for n in (1, 2, 3, 4, 5)]


def test_json_lines_named_json_and_arrays_named_jsonl(tmp_path):
    broken_line = '{"text": "a"}\nbroken\n{"text": "b"}\n'
    first, bad, last = read(tmp_path / "d.json", broken_line)
    assert (first.text, last.text, last.source_id) == ("a", "b", "d.json#3")
    assert isinstance(bad, BadRecord)
    assert [document.text for document in read(tmp_path / "d.jsonl", json.dumps(RECORDS[:2]))] == [
        "one",
        RECORDS[1]["text"],
    ]
    (bad,) = read(tmp_path / "d.jsonl", json.dumps(RECORDS), format="jsonl")
    assert "for JSON arrays set `format: json`" in str(bad)


def test_one_object_is_one_record_and_other_values_are_bad_ones(tmp_path):
    assert [document.text for document in read(tmp_path / "d.json", '{"text": "a"}')] == ["a"]
    bad, good = read(tmp_path / "d.json", '[5, {"text": "a"}]')
    assert str(bad).endswith("d.json: record 1: expected a JSON object, got int 5")
    assert good.text == "a"
    assert read(tmp_path / "d.json", "[]") == read(tmp_path / "d.json", " \n") == []


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": ', "record 2: broken JSON: "),
        ('[{"text": "a"}', "record 2: broken JSON: the file ends"),
        ('[{"text": "a"},', "record 2: broken JSON: "),
        ('[{"text": "a"},]', "record 2: broken JSON: trailing comma in the array"),
        ('[{"text": "a"} {"text": "b"}]', "record 2: broken JSON: expected a comma or the end of the array, got '{'"),
        ('[{"text": "a"}] []', "record 2: broken JSON: unexpected data after the array"),
        ('[{"text": "a}]', "record 1: broken JSON: Unterminated string"),
        ('[{"text": nul}' + ' {"text": "x"}' * 99, "record 1: broken JSON: Expecting value"),
        ('[{"a":' * 9999, "record 1: broken JSON: .*recursion"),
    ],
)
def test_where_it_is_broken_the_record_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"d\.json: {message}"):
        read(tmp_path / "d.json", text)


def test_bytes_that_are_not_utf8(tmp_path):
    with pytest.raises(UserError, match=r"d\.json: record 1: broken JSON: .*utf-8"):
        read(tmp_path / "d.json", b'[{"text": "caf\xe9"}]')


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(st.lists(values, max_size=4), st.integers(1, 9), st.sampled_from([None, 1]))
def test_what_json_reads_is_read(array, chunk, indent):
    text = json.dumps([{"value": value} for value in array], indent=indent)
    part = Part("d.json", "d.json", "json", io.BufferedReader(io.BytesIO(text.encode())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_CHUNK_CHARACTERS", chunk)
        assert [fields["value"] for _, _, fields in json_values.read_json(part)] == array
