import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import corpus_fingerprint
from teacher_cache.corpus.corpus_files import find_files
from teacher_cache.corpus.names import choose
from teacher_cache.corpus.sources import read_documents

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def source(path, **settings):
    return SourceConfig(path=str(path), **settings)


def read(path, **settings):
    return [(d.source_id, d.text) for d in read_documents(source(path, **settings), "corpus.sources.0")]


@pytest.fixture
def snapshot(tmp_path):
    """A data set in the layout of a hub's cache: links into a folder of blobs."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    (folder / "data").mkdir(parents=True)
    blobs.mkdir()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jsonl").write_text("junk\n")
    for n in range(2):
        pq.write_table(pa.table({"text": [f"text {n}"]}), blobs / str(n))
        (folder / "data" / f"train-0000{n}-of-00002.parquet").symlink_to(blobs / str(n))
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "load.py"):
        (folder / name).write_text("{}")
    return folder


def test_a_snapshot_of_a_hub(snapshot, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    names = [f"data/train-0000{n}-of-00002.parquet#1" for n in range(2)]
    assert read(snapshot) == list(zip(names, ["text 0", "text 1"], strict=True))
    assert "corpus.sources.0: skipped files, not documents: .cache/x.jsonl, .gitattributes, README.md, " in caplog.text
    before = corpus_fingerprint(CorpusConfig(sources=[source(snapshot)]))
    (snapshot / "README.md").write_text("other words")
    assert corpus_fingerprint(CorpusConfig(sources=[source(snapshot)])) == before


def test_parts_of_a_data_set_are_not_mixed(snapshot):
    pq.write_table(pa.table({"text": ["held out"]}), snapshot / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(
        UserError, match=r"holds several splits of a data set: test, train \(such as data/test-.*\*\*/train\*"
    ):
        read(snapshot)
    assert len(read(snapshot, pattern="**/train*")) == 2


def test_snapshots_are_not_mixed(snapshot):
    assert len(read(snapshot.parent.parent)) == 2
    (snapshot.parent / "89ab").mkdir()
    (snapshot.parent / "89ab" / "train.jsonl").write_text('{"text": "older"}\n')
    with pytest.raises(UserError, match=r"holds several snapshots; append one to `path`: snapshots/0123abc"):
        read(snapshot.parent.parent)


def test_companions_of_records_are_left_out_of_explicit_formats(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b").write_text('{"text": "b"}\n')
    for name in ("README.md", "LICENSE", ".gitattributes", "_SUCCESS"):
        (tmp_path / name).write_text("words\n")
    assert read(tmp_path, format="jsonl") == [("a.jsonl#1", "a"), ("b#1", "b")]


def test_files_below_need_a_pattern_in_explicit_formats(snapshot):
    (snapshot / "load.py").unlink()
    with pytest.raises(UserError, match=r"corpus\.sources\.0: no file in .*`\*\*/\*` searches the folders below"):
        read(snapshot, format="parquet", pattern="*.parquet")
    assert len(read(snapshot, format="parquet", pattern="**/*.parquet")) == 2


def test_folders_of_texts(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.py", "sub/b.rs", "README.md", ".hidden"):
        (tmp_path / name).write_text(name)
    assert [text for _, text in read(tmp_path)] == ["README.md", "a.py", "sub/b.rs"]


def test_each_format_by_its_name(tmp_path):
    (tmp_path / "a.ndjson").write_text('{"text": "a"}\n')
    (tmp_path / "b.json").write_text('[{"text": "b"}]')
    (tmp_path / "c.csv").write_text("text\nc\n")
    (tmp_path / "d.tsv").write_text("text\nd\n")
    pq.write_table(pa.table({"text": ["e"]}), tmp_path / "e.parquet")
    (tmp_path / "f.txt").write_text("not a record")
    assert [text for _, text in read(tmp_path)] == ["a", "b", "c", "d", "e"]


def test_a_saved_data_set_is_recognised(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"messages": CHAT, "id": 1}]).save_to_disk(tmp_path / "ds")
    (document,) = read_documents(source(tmp_path / "ds"), "s")
    assert (document.messages, document.source_id) == (CHAT, "ds#1")
    assert {file.format for file in find_files(source(tmp_path / "ds"), "s").files} == {"hf_dataset"}


def test_a_damaged_saved_data_set_is_one_line(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "x" * n} for n in range(5000)]).save_to_disk(tmp_path / "ds")
    (arrow,) = (tmp_path / "ds").glob("*.arrow")
    data = bytearray(arrow.read_bytes())
    for part in (4, 2):
        damaged = data[:]
        damaged[len(data) // part :] = bytes(len(data) - len(data) // part)
        arrow.write_bytes(damaged[: len(data) // part])
        with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: .*ds: (cannot be read|not a data set)"):
            read(tmp_path / "ds")


def test_choosing_is_by_name():
    names = ["data.jsonl.gz", "DATA.JSONL", "x.tar.gz", "x.zip", "dataset_info.json", "notes.txt"]
    wanted = {"data.jsonl.gz": "jsonl", "DATA.JSONL": "jsonl", "x.tar.gz": "archive", "x.zip": "archive"}
    assert choose(names, "auto", all_of_them=True) == wanted
    assert choose(["notes.txt", "a.py"], "auto", all_of_them=True) == {"notes.txt": "text", "a.py": "text"}
    assert choose(["README.md"], "jsonl", all_of_them=True) == {"README.md": "jsonl"}  # there is nothing else
    for everything in (True, False):  # an explicit choice is never overruled
        assert choose(["README.md", ".x"], "text", everything) == {"README.md": "text", ".x": "text"}
        assert choose([".x.jsonl", "state.json"], "jsonl", everything).keys() >= {".x.jsonl"}


def test_old_settings_are_written_as_they_were(tmp_path):
    written = json.dumps(source("d.jsonl", format="jsonl").model_dump())
    assert written == (
        '{"path": "d.jsonl", "format": "jsonl", "pattern": "*", "text_field": "text", "messages_field": "messages", '
        '"layer": "base", "limit": null}'
    )
    assert source("d.txt", split="line").model_dump()["split"] == "line"
