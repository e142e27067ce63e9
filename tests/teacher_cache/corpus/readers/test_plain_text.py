import subprocess
import sys

import pytest

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import content_parts as parts
from teacher_cache.corpus.readers import plain_text as text
from teacher_cache.corpus.sources import BadRecord, read_documents


def read(path, data, **settings):
    path.write_bytes(data)
    return list(read_documents(SourceConfig(path=str(path), format="text", **settings), "s"))


def texts(documents):
    return [(document.source_id, document.text) for document in documents]


def test_a_document_a_line(tmp_path):
    documents = read(tmp_path / "d.txt", "one\r\n\n  two é \nthree".encode(), split="line")
    assert texts(documents) == [("d.txt#1", "one"), ("d.txt#3", "  two é "), ("d.txt#4", "three")]
    assert documents[1].where.endswith("d.txt:3")


def test_a_document_a_paragraph(tmp_path):
    data = b"\n\none\ntwo\n \n\nthree\r\nfour\r\n\r\nfive"
    documents = read(tmp_path / "d.txt", data, split="paragraph")
    assert texts(documents) == [("d.txt#1", "one\ntwo"), ("d.txt#2", "three\nfour"), ("d.txt#3", "five")]
    assert [document.where.rsplit(":", 1)[1] for document in documents] == ["3", "7", "10"]


def test_split_is_for_texts(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"s\.split: line only applies to text, but .*d\.jsonl is read as jsonl"):
        list(read_documents(SourceConfig(path=str(tmp_path / "d.jsonl"), split="line"), "s"))
    assert texts(read(tmp_path / "d.jsonl", b'{"text": "x"}\n', split="line")) == [("d.jsonl#1", '{"text": "x"}')]


def test_a_document_a_file_is_kept_as_it_is(tmp_path):
    assert texts(read(tmp_path / "d.txt", b"\none\r\n\n")) == [("d.txt#1", "\none\r\n\n")]


@pytest.mark.parametrize("split", ["line", "paragraph"])
def test_bytes_that_are_not_utf8_are_one_bad_record(tmp_path, split):
    first, bad, last = read(tmp_path / "d.txt", b"one\n\ncaf\xe9\n\nthree\n", split=split)
    assert isinstance(bad, BadRecord)
    assert str(bad).endswith("d.txt:3: not UTF-8 text: byte 0xe9 at offset 3; set the source's `encoding`")
    assert (first.text, last.text) == ("one", "three")


def test_what_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    for module in (parts, text):
        monkeypatch.setattr(module, "MOST_BYTES", 100)
    for split, what in (("file", "larger than 100 bytes"), ("line", "line 1 is longer than 100 bytes")):
        with pytest.raises(UserError, match=rf"d\.txt: cannot be read: {what}"):
            read(tmp_path / "d.txt", b"x" * 101, split=split)
    with pytest.raises(UserError, match=r"d\.txt: cannot be read: the paragraph before line 3 is longer than 100"):
        read(tmp_path / "d.txt", b"x" * 60 + b"\n" + b"x" * 60, split="paragraph")


_MEASURE = """
import re, sys
from pathlib import Path
from schemas.cache_config import SourceConfig
from teacher_cache.corpus.clean import clean_text
from teacher_cache.corpus.sources import read_documents
def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before, characters = kib("VmRSS"), 0
for document in read_documents(SourceConfig(path=sys.argv[1], split=sys.argv[2]), "s"):
    characters += len(clean_text(document.text))
print(characters, (kib("VmHWM") - before) << 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(("split", "least", "most"), [("line", 0, 0.2), ("paragraph", 0, 0.2), ("file", 1, 2.6)])
def test_peak_memory(tmp_path, split, least, most):
    line = b"the quick brown fox jumps over the lazy dog and goes on, " * 20 + b"\n"
    data = (line * 2 + b"\n") * 18_000
    (tmp_path / "d.txt").write_bytes(data)
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "d.txt"), split]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    characters, memory = map(int, done.stdout.split())
    assert characters >= 0.97 * len(data) > 39e6
    assert least * len(data) <= memory < most * len(data)
