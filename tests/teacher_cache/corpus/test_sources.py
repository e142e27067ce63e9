import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.sources import BadRecord, read_documents

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read_all(path, format="jsonl", **settings):
    """Documents, and bad records without raising them."""
    return list(read_documents(SourceConfig(path=str(path), format=format, **settings), "corpus.sources.0"))


def read(path, format="jsonl", **settings):
    """Documents; the first bad record is raised."""
    items = read_all(path, format, **settings)
    for item in items:
        if isinstance(item, BadRecord):
            raise item
    return items


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_jsonl_text_and_chat_with_line_numbers(tmp_path):
    path = write(tmp_path / "d.jsonl", '{"text": "one"}', "", json.dumps({"text": "not read", "messages": CHAT}))
    first, second = read(path, layer="code")
    assert (first.text, first.messages, first.source_id, first.mix_layer) == ("one", None, "d.jsonl#1", "code")
    assert (second.messages, second.source_id) == (CHAT, "d.jsonl#3")
    assert second.where == f"{path}:3"


def test_own_field_names(tmp_path):
    path = write(tmp_path / "d.jsonl", '{"content": "one", "text": 5}', json.dumps({"turns": CHAT}))
    first, second = read(path, text_field="content", messages_field="turns")
    assert (first.text, second.messages) == ("one", CHAT)


def test_compressed_jsonl(tmp_path):
    line = b'{"text": "one"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line) * 2)  # two frames, as parallel writers make
    assert [document.source_id for document in read(tmp_path)] == ["a.jsonl.gz#1", "b.jsonl.zst#1", "b.jsonl.zst#2"]


@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_truncated_or_corrupt_compressed_file_is_named(tmp_path, name, compress):
    whole = compress(json.dumps({"text": "".join(map(str, range(9999)))}).encode() + b"\n")
    for broken in (whole[:-12], whole[:20], whole + whole[:20], b"not compressed"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UserError, match=rf"{name}: cannot be read: \w+"):
            read(tmp_path / name)


def test_byte_order_mark_before_the_first_record(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert read(path)[0].text == "one"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "broken', r"d\.jsonl:2: broken line, expected one JSON object in UTF-8: .*"),
        ("[" * 100_000, r"d\.jsonl:2: broken line"),
        ("[1, 2]", r"d\.jsonl:2: expected one JSON object, got list \[1, 2\]"),
        ("null", r"d\.jsonl:2: expected one JSON object, got NoneType"),
        ('{"body": "x"}', r"d\.jsonl:2: the record's fields are \['body'\], expected .* alpaca .*sources\.0"),
        ('{"text": 5}', r"d\.jsonl:2: text is int 5, expected a string"),
        ('{"messages": "hi"}', r"d\.jsonl:2: messages is str 'hi', which is not JSON"),
        ('{"messages": ["hi"]}', r"d\.jsonl:2: messages\[0\] is str 'hi', expected \{role, content\}"),
        ('{"messages": [{"role": "user"}]}', r"d\.jsonl:2: messages\[0\]\.content is NoneType None, expected a string"),
        ('{"messages": [{"role": 1, "content": "x"}]}', r"d\.jsonl:2: messages\[0\]\.role is int 1, expected a string"),
    ],
)
def test_broken_record_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "d.jsonl", '{"text": "fine"}', line)
    with pytest.raises(UserError, match=message):
        read(path)


def test_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:2: broken line"):
        read(path)


def test_null_is_an_empty_document(tmp_path):
    (document,) = read(write(tmp_path / "d.jsonl", '{"text": null}'))
    assert (document.text, document.messages) == ("", None)


def test_parquet(tmp_path):
    path = tmp_path / "d.parquet"
    texts = [f"text {n}" for n in range(600)]  # several batches
    pq.write_table(pa.table({"other": list(range(600)), "text": texts}), path)
    documents = read(path, "parquet")
    assert [document.text for document in documents] == texts
    assert documents[-1].source_id == "d.parquet#600"


def test_parquet_chat_with_columns_filled_with_null(tmp_path):
    path = tmp_path / "d.parquet"
    rows = [{"messages": CHAT, "text": None}, {"messages": None, "text": "plain"}]
    rows[0]["messages"] = [{**CHAT[0], "name": "ann"}, CHAT[1]]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = read(path, "parquet")
    assert first.messages == [{**CHAT[0], "name": "ann"}, CHAT[1]]
    assert (second.text, second.messages) == ("plain", None)


def test_parquet_errors_name_file_and_record(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "int.parquet")
    with pytest.raises(UserError, match=r"int\.parquet: record 1: text is int 1"):
        read(tmp_path / "int.parquet", "parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "body.parquet")
    with pytest.raises(UserError, match=r"body\.parquet: record 1: the record's fields are \['body'\]"):
        read(tmp_path / "body.parquet", "parquet")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"junk\.parquet: not a readable Parquet file"):
        read(tmp_path / "junk.parquet", "parquet")


def test_text_files_of_a_folder_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.py", "a.py", "sub/c.py", "d.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "z.py").symlink_to(tmp_path / "d.txt")
    documents = read(tmp_path, "text", pattern="**/*.py")
    assert [document.source_id for document in documents] == ["a.py#1", "b.py#1", "sub/c.py#1", "z.py#1"]
    assert documents[2].text == "# sub/c.py\n"
    assert [d.source_id for d in read(tmp_path, "text", pattern="*.py")] == ["a.py#1", "b.py#1", "z.py#1"]


def test_folder_name_with_glob_characters(tmp_path):
    folder = tmp_path / "data[1]*"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    assert [document.source_id for document in read(folder, "text")] == ["a.txt#1"]


def test_text_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = '\x93'\n")
    with pytest.raises(UserError, match=r"a\.py: not UTF-8 text: byte 0x93 at offset 5; .*`pattern`.*'\*\.py'"):
        read(tmp_path, "text", pattern="*.py")


def test_limit_counts_over_the_files(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [document.text for document in read(tmp_path, "text", limit=2)] == ["a", "b"]


def test_missing_path_and_pattern_without_match(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: .*nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UserError, match=r"corpus\.sources\.0: no file in .* matches the pattern '\*\.py'"):
        read(tmp_path, "text", pattern="*.py")


def test_unknown_file_system(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: nosuch://x"):
        read("nosuch://x/y")


def test_saved_hf_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"messages": CHAT, "n": 1}, {"messages": CHAT, "n": 2}]).save_to_disk(tmp_path / "ds")
    documents = read(tmp_path / "ds", "hf_dataset")
    assert [(document.source_id, document.messages) for document in documents] == [("ds#1", CHAT), ("ds#2", CHAT)]
    datasets.Dataset.from_list([{"body": "x"}]).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"record 1: the record's fields are \['body'\]"):
        read(tmp_path / "other", "hf_dataset")


def test_hf_dataset_with_splits_or_not_a_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([{"text": "x"}])
    datasets.DatasetDict({"train": train, "test": train}).save_to_disk(tmp_path / "ds")
    with pytest.raises(UserError, match=r"holds the splits \['test', 'train'\]; append one"):
        read(tmp_path / "ds", "hf_dataset")
    (tmp_path / "not").mkdir()
    (tmp_path / "not" / "file").write_text("x")
    with pytest.raises(UserError, match=r"not: not a data set written by save_to_disk"):
        read(tmp_path / "not", "hf_dataset")


def test_hf_dataset_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.format: hf_dataset requires `datasets`"):
        read(tmp_path, "hf_dataset")
