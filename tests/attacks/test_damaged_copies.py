"""Local copies of a store's files are damaged after they were fetched and checked, by a disk that fails."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry
from support.proxy import proxied
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.copies import LocalCopies
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage, file_entry
from trainer.data.batches import CacheRows
from trainer.data.selection import Selection, Subset
from trainer.data.validation_data import sorted_rows

BOUND = 1 << 22
DAMAGES = {
    "flipped": lambda data: bytes(byte ^ (place % 37 == 0) for place, byte in enumerate(data)),
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "longer": lambda data: bytes(64) + data,
}
FILES = ("index", "tokens", "logits")


@pytest.fixture
def url(s3_url: str) -> str:
    write_cache(s3_url, random_shards([[20, 15, 31], [7, 40]]))
    return s3_url


def entry_of(url: str, file: str) -> FileEntry:
    shard = read_manifest(Storage(url)).shards[0]
    return shard.index if file == "index" else shard.files[file]  # type: ignore[index]


def damage(folder: Path, entry: FileEntry, kind: str) -> None:
    copy = folder / entry.sha256
    copy.write_bytes(DAMAGES[kind](copy.read_bytes()))


def rows_of(reader: Any, skip_corrupt: bool) -> dict[str, np.ndarray]:
    rows = CacheRows(reader, sorted_rows(Subset(reader, Selection())), skip_corrupt=skip_corrupt)
    return {name: tensor.numpy() for name, tensor in rows.__getitems__(list(range(len(rows)))).items()}


@pytest.mark.parametrize("skip_corrupt", [False, True], ids=["stop", "skip"])
def test_a_damaged_copy_is_fetched_once_more(url: str, tmp_path: Path, skip_corrupt: bool) -> None:
    """Each copy is damaged in each way; training gets what the store has, and leaves nothing out."""
    wanted = rows_of(CacheReader(url), skip_corrupt)
    for file in FILES:
        for kind in DAMAGES:
            CacheReader(url, copies=(str(tmp_path), BOUND)).read_rows([[i] for i in range(5)])
            damage(tmp_path, entry_of(url, file), kind)
            found = rows_of(CacheReader(url, copies=(str(tmp_path), BOUND)), skip_corrupt)
            assert found.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array, err_msg=f"{file} {kind} {name}")
            assert found.get("skipped", np.zeros(1)).sum() == 0
            data = (tmp_path / entry_of(url, file).sha256).read_bytes()
            assert file_entry(data) == entry_of(url, file), "the copy is whole again"


def test_a_copy_and_its_store_that_are_both_damaged(s3_server: str, url: str, tmp_path: Path) -> None:
    """The copy is damaged and so is what the store sends: refused by name after two attempts, and not once a sample."""
    CacheReader(url, copies=(str(tmp_path), BOUND)).read_rows([[0]])
    damage(tmp_path, entry_of(url, "logits"), "zeroed")
    with proxied(s3_server, flips={"shard-000000.logits.tar": 1000}) as proxy:
        reader = CacheReader(url, copies=(str(tmp_path), BOUND))
        for position in (0, 1, 2):
            with pytest.raises(CorruptCacheError, match=r"shard-000000\.logits\.tar: fetched twice, its sha256 is"):
                reader.read_logits(position)
        assert proxy.injected["flip"] == 2
    assert CacheReader(url, copies=(str(tmp_path), BOUND)).read_logits(0).num_tokens == 20


def test_a_copy_reaches_the_disk_before_its_name(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails: what has a name is whole, since the content was synced before the rename."""
    order: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_replace(old: str, new: Path) -> None:
        order.append(("rename", os.stat(old).st_ino))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    CacheReader(url, copies=(str(tmp_path), BOUND)).read_rows([[0]])
    renamed = [inode for what, inode in order if what == "rename"]
    assert len(renamed) == 3
    assert order == [(what, inode) for inode in renamed for what in ("sync", "rename")]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users may write to, as /tmp is."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(work: Any) -> int:
    """Exit status of a process without rights that does ``work``."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_users_copies(shared: Path) -> None:
    """Two users share a folder of copies: one can read what the other fetched, and fetch beside it."""
    storage = Storage(f"memory://{shared.name}")
    entries = [storage.write(f"{number}.bin", bytes([number]) * 1000) for number in range(2)]
    copies = LocalCopies(storage, str(shared), 1500)
    assert copies.read("0.bin", entries[0], 0, 3) == bytes(3)
    assert stat.S_IMODE((shared / entries[0].sha256).stat().st_mode) & 0o444 == 0o444

    def read() -> None:
        theirs = LocalCopies(storage, str(shared), 2500)
        assert theirs.read("0.bin", entries[0], 0, 3) == bytes(3)
        assert theirs.read("1.bin", entries[1], 0, 3) == bytes([1] * 3)

    assert as_nobody(read) == 0
    assert {path.name for path in shared.iterdir()} >= {entry.sha256 for entry in entries}
