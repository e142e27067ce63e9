import bz2
import gzip
import io
import json
import logging
import lzma
import tarfile
import zipfile

import pytest
import zstandard

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import expand
from teacher_cache.corpus.sources import BadRecord, read_documents

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def read(path, **settings):
    items = list(read_documents(SourceConfig(path=str(path), **settings), "corpus.sources.0"))
    assert not [item for item in items if isinstance(item, BadRecord)]
    return {item.source_id: item.text for item in items}


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zipped(members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


MEMBERS = [("b.jsonl", lines("b one", "b two")), ("a/c.jsonl", lines("c")), ("README.md", b"# no data")]
ARCHIVES = {
    "x.zip": zipped(MEMBERS),
    "x.tar": tarred(MEMBERS),
    **{f"x.tar.{ending}": compress(tarred(MEMBERS)) for ending, compress in COMPRESS.items()},
    "x.tgz": gzip.compress(tarred(MEMBERS)),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_all_files_of_an_archive_are_read_in_its_order(tmp_path, name, format, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    (tmp_path / name).write_bytes(ARCHIVES[name])
    wanted = {f"{name}/b.jsonl#1": "b one", f"{name}/b.jsonl#2": "b two", f"{name}/a/c.jsonl#1": "c"}
    for path in (tmp_path / name, tmp_path):
        assert list(read(path, format=format).items()) == list(wanted.items())
    assert f"corpus.sources.0: skipped files, not documents: {name}/README.md" in caplog.messages


def test_a_pattern_chooses_files_of_an_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped([("a.py", "a = 1"), ("sub/b.py", "b = 2"), ("c.txt", "c")]))
    assert list(read(tmp_path / "x.zip", pattern="*.py")) == ["x.zip/a.py#1"]
    assert list(read(tmp_path / "x.zip", pattern="**/*.py", format="text")) == ["x.zip/a.py#1", "x.zip/sub/b.py#1"]
    assert len(read(tmp_path / "x.zip")) == 3
    with pytest.raises(UserError, match=r"x\.zip: none of the archive's 3 files match; correct `pattern`"):
        read(tmp_path / "x.zip", pattern="*.rs")


def test_compressed_files_and_parquet_in_an_archive(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["p"]}), parquet)
    members = [(f"{ending}.jsonl.{ending}", compress(lines(ending))) for ending, compress in COMPRESS.items()]
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tarred([*members, ("p.parquet", parquet.getvalue())])))
    assert list(read(tmp_path / "x.tar.gz").values()) == [*COMPRESS, "p"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_of_zip(tmp_path, method):
    (tmp_path / "x.zip").write_bytes(zipped([("a.jsonl", lines("a"))], method))
    assert read(tmp_path / "x.zip") == {"x.zip/a.jsonl#1": "a"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.jsonl", "a/../../up.jsonl", "C:\\up.jsonl", "a\\..\\up.jsonl"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path, name, pack):
    path = tmp_path / ("x.zip" if pack is zipped else "x.tar")
    path.write_bytes(pack([("a.jsonl", lines("a")), (name, b"x")]))
    with pytest.raises(UserError, match=rf"{path.name}: cannot be read: unsafe member name .*up|passwd"):
        read(path)


def test_links_and_devices_are_left_out_by_name(tmp_path, caplog):
    caplog.set_level(logging.INFO, "teacher_cache")
    link, device = tarfile.TarInfo("link.jsonl"), tarfile.TarInfo("device.jsonl")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE
    (tmp_path / "x.tar").write_bytes(tarred([("a.jsonl", lines("a")), (link, b""), (device, b"")]))
    assert read(tmp_path / "x.tar") == {"x.tar/a.jsonl#1": "a"}
    assert "corpus.sources.0: skipped files, not documents: x.tar/link.jsonl, x.tar/device.jsonl" in caplog.messages
    stored = zipfile.ZipInfo("link.jsonl")
    stored.external_attr = 0o120777 << 16
    (tmp_path / "x.zip").write_bytes(zipped([("a.jsonl", lines("a")), (stored, "/etc/passwd")]))
    assert read(tmp_path / "x.zip") == {"x.zip/a.jsonl#1": "a"}


def test_an_archive_in_an_archive_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped([("a.jsonl", lines("a")), ("in.zip", zipped([]))]))
    with pytest.raises(UserError, match=r"x\.zip: nested archive 'in\.zip'; unpack it"):
        read(tmp_path / "x.zip")
    assert read(tmp_path / "x.zip", pattern="*.jsonl") == {"x.zip/a.jsonl#1": "a"}


def test_an_empty_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped([]))
    with pytest.raises(UserError, match=r"x\.zip: none of the archive's 0 files match"):
        read(tmp_path / "x.zip")


@pytest.mark.parametrize("name", [*ARCHIVES, *(f"x.jsonl.{ending}" for ending in COMPRESS)])
def test_damage_is_one_line_that_names_the_file(tmp_path, name):
    text = lines(*(f"text number {n * 7919 % 10007}" for n in range(2000)))
    whole = ARCHIVES.get(name) or COMPRESS[name.rsplit(".", 1)[1]](text)
    path = tmp_path / name
    middle = len(whole) // 2
    damaged = [whole[: len(whole) * part // 4] for part in (1, 2, 3)]
    damaged += [b"not what the name says", b"", whole[:middle] + b"\xff\x00\xfd" + whole[middle + 3 :]]
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read(path)
        except UserError as error:
            refused += name in str(error)
    assert refused >= {"x.tar": 3, "x.zip": 5}.get(name, 6)  # no checksum of files; damage in a file that is not read
    path.write_bytes(whole)
    assert len(read(path)) > 2


def test_flipped_bytes_in_a_zip_fail_its_checksum(tmp_path):
    data = bytearray(zipped([("a.jsonl", lines(*map(str, range(500))))], zipfile.ZIP_STORED))
    data[500] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.zip/a\.jsonl: cannot be read: damaged archive: Bad CRC-32"):
        list(read_documents(SourceConfig(path=str(tmp_path / "x.zip")), "s"))


def test_an_encrypted_zip(tmp_path):
    data = bytearray(zipped([("a.jsonl", lines("a"))]))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.zip: cannot be read: damaged archive: .*encrypted, password required"):
        read(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", *(f"x.jsonl.{ending}" for ending in COMPRESS)])
def test_a_bomb_is_not_read_to_its_end(tmp_path, name, monkeypatch):
    monkeypatch.setattr(expand, "_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(expand, "_MOST_EXPANSION", 20)
    bomb = lines("x" * (1 << 23))
    if name == "x.zip":
        data = zipped([("a.jsonl", bomb)])
    elif name == "x.tar.gz":
        data = gzip.compress(tarred([("a.jsonl", bomb)]))
    else:
        data = COMPRESS[name.rsplit(".", 1)[1]](bomb)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: cannot be read: \d+ bytes expand to more than 20 times as many"):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", COMPRESS)
def test_frames_and_padding_after_a_frame(tmp_path, ending):
    frame = COMPRESS[ending](lines("a"))
    padding = bytes(512) if ending in ("gz", "xz") else b""
    (tmp_path / f"x.jsonl.{ending}").write_bytes(frame + frame + padding)
    assert list(read(tmp_path / f"x.jsonl.{ending}").values()) == ["a", "a"]


def test_a_long_window_of_zstd_is_raised_on_request(tmp_path):
    frame = b"\x28\xb5\x2f\xfd\x00\xa8\xa1\x00\x00" + lines("far")  # a window of 2^31, one raw block of 20 bytes
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 31
    frame = frame[:6] + (1 | len(lines("far")) << 3).to_bytes(3, "little") + lines("far")
    (tmp_path / "x.jsonl.zst").write_bytes(frame)
    with pytest.raises(
        UserError, match=r"x\.jsonl\.zst: cannot be read: a frame's .*--long\).*; raise the source's `zstd_window_log`"
    ):
        read(tmp_path / "x.jsonl.zst")
    assert read(tmp_path / "x.jsonl.zst", zstd_window_log=31) == {"x.jsonl.zst#1": "far"}
