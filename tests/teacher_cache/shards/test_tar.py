import errno
import hashlib
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset as wds
import xxhash

from schemas.arrow import SIGNAL_SCHEMA
from teacher_cache.codec.message import write_row
from teacher_cache.shards.tar import TarWriter, tar_bytes

MEMBERS = [("aa", b"first"), ("b" * 64, bytes(512)), ("0c", b"x" * 513), ("dd", b"")]


def write(path: Path, members: list[tuple[str, bytes]] = MEMBERS) -> TarWriter:
    with TarWriter(path, "tokens") as tar:
        for key, payload in members:
            tar.add(key, payload)
    return tar


def test_tarfile_reads_the_same_members_in_order(tmp_path: Path) -> None:
    write(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar", "r:") as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]
    assert found == [(f"{key}.tokens.arrow", payload) for key, payload in MEMBERS]


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    write(tmp_path / "x.tar")
    dataset = wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
    assert [(sample["__key__"], sample["tokens.arrow"]) for sample in dataset] == MEMBERS


def test_the_index_says_where_the_payloads_lie(tmp_path: Path) -> None:
    index = write(tmp_path / "x.tar").index()
    data = (tmp_path / "x.tar").read_bytes()
    assert index.file.bytes == len(data)
    assert index.file.sha256 == hashlib.sha256(data).hexdigest()
    spans = zip(index.offsets, index.sizes, strict=True)
    assert [data[offset : offset + size] for offset, size in spans] == [payload for _, payload in MEMBERS]
    assert index.checksums == [xxhash.xxh3_64_hexdigest(payload) for _, payload in MEMBERS]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("x.tar", "y.tar"):
        write(tmp_path / name)
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:  # independent of machine and time
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_bundles_hold_records_where_the_index_says(tmp_path: Path) -> None:
    records = [f"record {i}".encode() for i in range(5)]
    with TarWriter(tmp_path / "x.tar", "logits", [3, 2]) as tar:
        for i, record in enumerate(records):
            tar.add(f"{i:02d}", write_row(SIGNAL_SCHEMA, {"frame": record}) if i % 2 else record)
    index, data = tar.index(), (tmp_path / "x.tar").read_bytes()
    assert [data[at : at + size] for at, size in zip(index.offsets, index.sizes, strict=True)] == records
    assert index.checksums == [xxhash.xxh3_64_hexdigest(record) for record in records]
    assert index.bundles is not None
    assert index.bundles.samples == [3, 2]
    with tarfile.open(tmp_path / "x.tar", "r:") as plain:
        assert [(m.name, m.offset_data, m.size) for m in plain] == [
            ("00.logits.arrow", index.bundles.offsets[0], index.bundles.sizes[0]),
            ("03.logits.arrow", index.bundles.offsets[1], index.bundles.sizes[1]),
        ]
    dataset = wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
    rows = [pa.ipc.open_stream(member["logits.arrow"]).read_all()["frame"].to_pylist() for member in dataset]
    assert rows == [records[:3], records[3:]]
    assert tar_bytes(index.sizes, [3, 2]) == len(data) == index.file.bytes


def test_a_bundle_that_is_not_full_at_the_end_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="incomplete bundle: 1 of 3 samples"),
        TarWriter(tmp_path / "x", "logits", [3]) as t,
    ):
        t.add("00", b"record")


def test_a_full_disk_is_an_error_and_the_file_is_closed() -> None:
    tar = TarWriter(Path("/dev/full"), "tokens")
    with pytest.raises(OSError, match="No space left") as caught, tar:
        tar.add("aa", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
