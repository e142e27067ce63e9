"""Reading arbitrary bytes gives documents, bad records, or one UserError."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.sources import BadRecord, Document, read_documents

LINES = b"".join(json.dumps({"text": f"text {n} é", "n": None}).encode() + b"\n" for n in range(20))


def packed(kind):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", LINES)
            archive.writestr("b.jsonl", LINES)
    elif kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            info = tarfile.TarInfo("a" * 120 + ".jsonl")
            info.size = len(LINES)
            archive.addfile(info, io.BytesIO(LINES))
    else:
        pq.write_table(pa.table({"text": ["a", None, "é"] * 9, "tools": [[{"a": 1}]] * 27}), stream)
    return stream.getvalue()


FILES = {
    "d.jsonl": LINES,
    "d.json": b"[" + LINES.strip().replace(b"\n", b",") + b"]",
    "d.csv": b'text,id\n"a ""b""",1\n\xc3\xa9,2\n',
    "d.txt": LINES,
    "d.parquet": packed("parquet"),
    "d.zip": packed("zip"),
    "d.tar": packed("tar"),
    "d.tar.gz": gzip.compress(packed("tar")),
    "d.jsonl.gz": gzip.compress(LINES),
    "d.jsonl.bz2": bz2.compress(LINES),
    "d.jsonl.xz": lzma.compress(LINES),
    "d.jsonl.zst": zstandard.compress(LINES),
}
damage = st.lists(
    st.tuples(st.floats(0, 1), st.binary(max_size=9), st.integers(0, 9)), max_size=4
)  # offset, inserted bytes, number of bytes replaced


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=damage, cut=st.floats(0, 1) | st.just(1.0), split=st.sampled_from(["file", "line", "paragraph"]))
@example(changes=[], cut=1.0, split="file")
def test_reading_ends_in_documents_or_one_error(tmp_path, name, changes, cut, split):
    data = FILES[name]
    for where, new, old in changes:
        at = int(where * len(data))
        data = data[:at] + new + data[at + old :]
    data = data[: int(cut * len(data))]
    (tmp_path / name).write_bytes(data)
    source = SourceConfig(path=str(tmp_path / name), split=split if name.endswith(".txt") else "file")
    try:
        items = list(read_documents(source, "corpus.sources.0"))
    except UserError as error:
        assert name in str(error)  # noqa: PT017
        assert data != FILES[name]
    else:
        assert all(isinstance(item, Document | BadRecord) for item in items)
        if data == FILES[name]:
            assert not any(isinstance(item, BadRecord) for item in items)
            assert items
