import hashlib
import tarfile
from pathlib import Path

import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.shards.tar import TarWriter


def write(path: Path, members: list[tuple[str, bytes]]) -> TarWriter:
    with TarWriter(path, "logits") as tar:
        for key, payload in members:
            tar.add(key, payload)
    return tar


@settings(max_examples=30, deadline=None)
@given(payloads=st.lists(st.binary(max_size=1600), max_size=5))
def test_any_tar_reader_reads_it_and_the_index_says_where(tmp_path_factory, payloads: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    members = [(f"{i:032x}", payload) for i, payload in enumerate(payloads)]
    index = write(path, members).index()
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        names = tar.getnames()
        for (key, payload), name in zip(members, names, strict=True):
            assert name == f"{key}.logits.arrow"
            assert tar.extractfile(name).read() == payload
    for payload, offset, size, digest in zip(payloads, index.offsets, index.sizes, index.checksums, strict=True):
        assert data[offset : offset + size] == payload
        assert digest == xxhash.xxh3_64_hexdigest(payload)
    assert (index.file.bytes, index.file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    members = [("a", b"one"), ("b", b"two" * 500)]
    write(tmp_path / "x", members)
    write(tmp_path / "y", members)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
