import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from schemas.load import validate
from teacher_cache.corpus.sources import read_documents

TEXT = "café 日本 😀 ä\r\n\nпривет\n"


def read(path, data, **settings):
    path.write_bytes(data)
    return [document.text for document in read_documents(SourceConfig(path=str(path), **settings), "s")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    for settings in ({}, {"encoding": "latin-1"}):
        assert read(tmp_path / "d.txt", TEXT.encode(encoding), **settings) == [TEXT]
        assert read(tmp_path / "d.jsonl", json.dumps({"text": TEXT}).encode(encoding), **settings) == [TEXT]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16-le", TEXT),
        ("utf-16-be", TEXT),
        ("utf-16", TEXT),
        ("gb18030", TEXT),
        ("shift_jis", "日本語\nテキスト"),
        ("latin-1", "café\n"),
        ("cp1252", "“café” – €\n"),
        ("koi8-r", "привет\n"),
        ("cp500", "EBCDIC\n"),
    ],
)
def test_the_encoding_is_honoured_by_every_format_of_text(tmp_path, encoding, text):
    line = text.split("\n")[0].removesuffix("\r")
    assert read(tmp_path / "d.txt", text.encode(encoding), encoding=encoding) == [text]
    assert read(tmp_path / "d.txt", text.encode(encoding), encoding=encoding, split="line")[0] == line
    record = json.dumps({"text": line}, ensure_ascii=False)
    assert read(tmp_path / "d.jsonl", f"{record}\n{record}\n".encode(encoding), encoding=encoding) == [line] * 2
    assert read(tmp_path / "d.json", f"[{record}]".encode(encoding), encoding=encoding) == [line]
    assert read(tmp_path / "d.csv", f"text\n{line}\n".encode(encoding), encoding=encoding) == [line]


def test_bytes_that_are_not_in_the_encoding(tmp_path):
    with pytest.raises(UserError, match=r"d\.txt: cannot be read: not utf-16-le text: .*at offset 2"):
        read(tmp_path / "d.txt", b"a\0\x00\xd8b\0c\0", encoding="utf-16-le")
    with pytest.raises(UserError, match=r"d\.txt: cannot be read: not cp1252 text: .*at offset 70000"):
        read(tmp_path / "d.txt", b"x" * 70_000 + b"\x81", encoding="cp1252")
    with pytest.raises(UserError, match=r"d\.txt: cannot be read: not utf-16-be text: truncated data at offset 4"):
        read(tmp_path / "d.txt", "ab".encode("utf-16-be") + b"c", encoding="utf-16-be")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_not_taken_for_utf8(tmp_path, encoding):
    with pytest.raises(UserError, match=rf"d\.txt: .*looks like UTF-16 .*set the source's `encoding: {encoding}`"):
        read(tmp_path / "d.txt", "plain words\n".encode(encoding))


@pytest.mark.parametrize("encoding", ["nonsense", "base64", "rot13", ""])
def test_unknown_encodings_are_refused_by_the_configuration(encoding):
    with pytest.raises(UserError, match=r"x: encoding: .* is not a text encoding"):
        validate(SourceConfig, {"path": "d.txt", "encoding": encoding}, "x")


@given(st.text(), st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "gb18030", "utf-7"]), st.integers(1, 5))
def test_decoding_is_independent_of_block_boundaries(text, encoding, chunk):
    import io

    from teacher_cache.corpus import decoding

    class Slow(io.RawIOBase):
        def __init__(self, data):
            self.data = data

        def readable(self):
            return True

        def readinto(self, buffer):
            piece, self.data = self.data[:chunk], self.data[chunk:]
            buffer[: len(piece)] = piece
            return len(piece)

    text = text.lstrip("\ufeff\ufffe")
    stream = decoding.as_utf8(io.BufferedReader(Slow(text.encode(encoding)), 16), encoding)
    assert stream.read().decode() == text
