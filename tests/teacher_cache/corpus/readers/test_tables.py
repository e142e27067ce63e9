import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.content_parts import Part
from teacher_cache.corpus.readers.tables import read_table
from teacher_cache.corpus.sources import BadRecord, read_documents


def read(path, data, **settings):
    path.write_bytes(data.encode())
    return list(read_documents(SourceConfig(path=str(path), **settings), "s"))


def test_text_with_commas_quotes_and_line_ends(tmp_path):
    documents = read(tmp_path / "d.csv", 'id,text\r\n1,"a, ""b""\nc"\r\n\r\n2,d\r\n')
    assert [(d.text, d.source_id) for d in documents] == [('a, "b"\nc', "d.csv#1"), ("d", "d.csv#3")]


@pytest.mark.parametrize(("name", "delimiter"), [("d.csv", ";"), ("d.csv", "|"), ("d.csv", "\t"), ("d.tsv", "\t")])
def test_delimiters(tmp_path, name, delimiter):
    (document,) = read(tmp_path / name, f"text{delimiter}id\na, b{delimiter}1\n")
    assert document.text == "a, b"


def test_a_table_of_one_column(tmp_path):
    assert [d.text for d in read(tmp_path / "d.tsv", "text\na, b; c\n")] == ["a, b; c"]
    assert [d.text for d in read(tmp_path / "d.csv", 'text\n"a, b"\n')] == ["a, b"]


def test_chats_as_json_in_a_cell(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a, b"}]
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerows([["messages", "text"], [json.dumps(chat), ""], ["", "plain"]])
    first, second = read(tmp_path / "d.csv", stream.getvalue())
    assert first.messages == chat
    assert (second.text, second.messages) == ("plain", None)


def test_alpaca_in_a_table(tmp_path):
    (document,) = read(tmp_path / "d.csv", "instruction,input,output\nAdd.,,3\n")
    assert [message["content"] for message in document.messages] == ["Add.", "3"]


def test_rows_that_do_not_fit_are_bad_records(tmp_path):
    short, broken, good = read(tmp_path / "d.csv", 'text,id\na\n"a"b,c\nfine,3\n')
    assert str(short).endswith("d.csv: record 1: 1 cells, expected 2 as in the header ['text', 'id']")
    assert isinstance(broken, BadRecord)
    assert (good.text, good.source_id) == ("fine", "d.csv#3")
    assert "unexpected end of data" in str(read(tmp_path / "d.csv", 'text\n"never closed\n')[0])


def test_headers(tmp_path):
    with pytest.raises(UserError, match=r"d\.csv: duplicate field in the header \['text', 'text'\]"):
        read(tmp_path / "d.csv", "text,text\na,b\n")
    assert read(tmp_path / "d.csv", "") == read(tmp_path / "d.csv", "text\n") == []


def test_encodings(tmp_path):
    (tmp_path / "d.csv").write_bytes("text\ncafé\n".encode("utf-16"))
    (document,) = read_documents(SourceConfig(path=str(tmp_path / "d.csv")), "s")
    assert document.text == "café"
    (tmp_path / "d.csv").write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"d\.csv: not UTF-8 text: .*; set the source's `encoding`"):
        list(read_documents(SourceConfig(path=str(tmp_path / "d.csv")), "s"))


cells = st.text(alphabet='ab,;"\n\té|', max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=5))
def test_what_csv_writes_is_read(rows):
    stream = io.StringIO()
    csv.writer(stream).writerows([("one", "two"), *rows])
    part = Part("d.csv", "d.csv", "csv", io.BytesIO(stream.getvalue().encode()))
    assert [tuple(fields.values()) for _, _, fields in read_table(part)] == rows
