import errno
import hashlib
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
import xxhash

from teacher_cache.shards.tar import TarWriter

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
    with tarfile.open(tmp_path / "x.tar") as tar:  # nothing of the machine or the moment
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_a_full_disk_is_an_error_and_the_file_is_closed() -> None:
    tar = TarWriter(Path("/dev/full"), "tokens")
    with pytest.raises(OSError, match="No space left") as caught, tar:
        tar.add("aa", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
