"""Local copies: verified, within their size limit, shared by processes, safe when these are killed."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import FileEntry
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import store_requests
from teacher_cache.shards.copies import LocalCopies
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage, file_entry

SIZE = 40_000


def content(number: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(number).bytes(size)


_numbers = itertools.count()


@pytest.fixture
def remote() -> Iterator[Storage]:
    """A store of five files, ``0.bin`` to ``4.bin``."""
    storage = Storage(f"memory://copies-{next(_numbers)}")
    for number in range(5):
        storage.write(f"{number}.bin", content(number))
    yield storage
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "copies"


def entry(number: int) -> FileEntry:
    return file_entry(content(number))


def held(folder: Path) -> set[int]:
    """Numbers of the files with a copy."""
    names = {path.name for path in folder.iterdir()}
    return {number for number in range(5) if entry(number).sha256 in names}


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_any_part_of_a_file_is_read_from_its_copy(remote: Storage, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_requests, "PART_BYTES", 999)
    local = LocalCopies(remote, str(folder), 3 * SIZE)
    for start, size in ((0, SIZE), (5, 1), (SIZE - 7, 7), (100, 3000)):
        assert local.read("2.bin", entry(2), start, size) == content(2)[start : start + size]
    remote.delete("2.bin")
    assert local.read("2.bin", entry(2), 3, 4) == content(2)[3:7], "the copy is enough"
    assert hashlib.sha256((folder / entry(2).sha256).read_bytes()).hexdigest() == entry(2).sha256


def test_the_least_recently_used_copy_is_evicted(remote: Storage, folder: Path) -> None:
    local = LocalCopies(remote, str(folder), 3 * SIZE + 10)
    for number in (0, 1, 2, 0, 3, 4):
        local.read(f"{number}.bin", entry(number), 0, 1)
        assert used_bytes(folder) <= 3 * SIZE + 10
        time.sleep(0.01)
    assert held(folder) == {0, 3, 4}


def test_a_file_larger_than_the_bound_is_refused(remote: Storage, folder: Path) -> None:
    with pytest.raises(UserError, match=r"0\.bin: 40000 bytes exceed the limit of 39999 for all local copies"):
        LocalCopies(remote, str(folder), SIZE - 1).read("0.bin", entry(0), 0, 1)


@pytest.mark.parametrize("wrong", ["changed", "longer", "shorter"])
def test_wrong_content_is_fetched_once_more_and_then_refused(remote, folder, monkeypatch, wrong: str) -> None:
    data = {"changed": b"x" + content(1)[1:], "longer": content(1) + b"x", "shorter": content(1)[:-1]}[wrong]
    remote.write("1.bin", data)
    reads = []
    read_range = Storage.read_range
    monkeypatch.setattr(Storage, "read_range", lambda *args: reads.append(args[1]) or read_range(*args))
    local = LocalCopies(remote, str(folder), 3 * SIZE)
    if wrong == "longer":  # bytes beyond the listed size are not fetched
        assert local.read("1.bin", entry(1), 0, SIZE) == content(1)
        return
    with pytest.raises(
        CorruptCacheError, match=r"1\.bin: fetched twice, its sha256 is [0-9a-f]{64}, the manifest says"
    ):
        local.read("1.bin", entry(1), 0, 1)
    seen = len(reads)
    assert seen >= 2
    assert held(folder) == set()
    remote.write("1.bin", content(1))
    with pytest.raises(CorruptCacheError, match=r"1\.bin: fetched twice"):
        local.read("1.bin", entry(1), 0, SIZE)
    assert len(reads) == seen, "it is not fetched again by this process, but by the next"
    assert LocalCopies(remote, str(folder), 3 * SIZE).read("1.bin", entry(1), 0, SIZE) == content(1)


def test_a_store_that_fails_now_and_then_is_asked_again(remote: Storage, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0)
    monkeypatch.setattr(store_requests, "PART_BYTES", 1000)
    rng = np.random.default_rng(0)
    cat_file = type(remote._fs).cat_file

    def failing(self, path, start=None, end=None):
        if rng.random() < 0.3:
            raise ConnectionResetError("reset by the peer")
        data = cat_file(self, path, start, end)
        return data[: len(data) // 2] if rng.random() < 0.2 else data

    monkeypatch.setattr(type(remote._fs), "cat_file", failing)
    local = LocalCopies(remote, str(folder), 5 * SIZE)
    assert [local.read(f"{n}.bin", entry(n), 0, SIZE) for n in range(3)] == [content(n) for n in range(3)]


def test_a_missing_file_and_a_folder_that_cannot_be_are_named(remote: Storage, folder: Path) -> None:
    remote.delete("3.bin")
    with pytest.raises(CorruptCacheError, match=r"3\.bin: the file is missing"):
        LocalCopies(remote, str(folder), 3 * SIZE).read("3.bin", entry(3), 0, 1)
    folder.joinpath("file").write_text("")
    with pytest.raises(UserError, match="a local copy cannot be written"):
        LocalCopies(remote, str(folder / "file"), 3 * SIZE).read("0.bin", entry(0), 0, 1)


def test_prefetched_shards_are_there_when_needed(remote: Storage, folder: Path, caplog) -> None:
    local = LocalCopies(remote, str(folder), 5 * SIZE)
    remote.delete("4.bin")
    local.fetch_ahead([(f"{number}.bin", entry(number)) for number in (0, 4, 2)])
    for _ in range(500):
        if folder.exists() and held(folder) == {0, 2}:
            break
        time.sleep(0.01)
    assert held(folder) == {0, 2}, "what fails ahead is not an error yet"
    local.close()
    with pytest.raises(CorruptCacheError, match=r"4\.bin: the file is missing"):
        local.read("4.bin", entry(4), 0, 1)


def test_prefetching_does_not_evict_shards_needed_earlier(remote, folder, monkeypatch) -> None:
    """With room for three, files are prefetched far ahead and read in order; none is fetched twice."""
    fetched = []
    read_range = Storage.read_range
    monkeypatch.setattr(Storage, "read_range", lambda *args: fetched.append(args[1]) or read_range(*args))
    local = LocalCopies(remote, str(folder), 3 * SIZE)
    for current in range(5):
        local.fetch_ahead([(f"{number}.bin", entry(number)) for number in range(current, 5)])
        time.sleep(0.3)
        assert held(folder) >= set(range(current, min(current + 3, 5)))
        assert local.read(f"{current}.bin", entry(current), 0, SIZE) == content(current)
    local.close()
    assert sorted(fetched) == [f"{number}.bin" for number in range(5)]


def read_for_ever(url: str, folder: str, seed: int, reports: "multiprocessing.Queue[str]") -> None:
    """Read files at random, with room for three of five, and report errors."""
    local, rng = LocalCopies(Storage(url), folder, 3 * SIZE), np.random.default_rng(seed)
    try:
        while True:
            number = int(rng.integers(5))
            if local.read(f"{number}.bin", entry(number), 0, SIZE) != content(number):
                reports.put("wrong content")
    except Exception as error:
        reports.put(repr(error))


def test_killing_a_process_that_shares_the_folder_harms_no_other(tmp_path: Path, folder: Path) -> None:
    """Twenty SIGKILLs: the folder never exceeds its size limit, and leftovers are removed."""
    remote = Storage(f"local://{tmp_path}/remote")
    for number in range(5):
        remote.write(f"{number}.bin", content(number))
    context = multiprocessing.get_context("fork")
    reports: multiprocessing.Queue[str] = context.Queue()
    survivor = context.Process(target=read_for_ever, args=(remote.url, str(folder), 0, reports))
    survivor.start()
    rng = np.random.default_rng(1)
    try:
        for kill in range(20):
            victim = context.Process(target=read_for_ever, args=(remote.url, str(folder), kill, reports))
            victim.start()
            time.sleep(rng.uniform(0.02, 0.15))
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            assert survivor.is_alive(), reports.get(timeout=5)
            assert survivor.pid is not None
            os.kill(survivor.pid, signal.SIGSTOP)  # freeze the folder for inspection
            assert used_bytes(folder) <= 3 * SIZE
            os.kill(survivor.pid, signal.SIGCONT)
    finally:
        survivor.kill()
        survivor.join()
    assert reports.empty(), reports.get()
    local = LocalCopies(remote, str(folder), 3 * SIZE)
    for number in range(5):
        assert local.read(f"{number}.bin", entry(number), 0, SIZE) == content(number)
    assert not list(folder.glob("*.part"))


def test_a_reader_reads_a_remote_cache_from_its_copies(s3_url: str, folder: Path, tmp_path: Path) -> None:
    shards = random_shards([[20, 1, 31], [7, 40], [3]])
    write_cache(s3_url, shards)
    write_cache(str(tmp_path / "cache"), shards)
    wanted, found = CacheReader(str(tmp_path / "cache")), CacheReader(s3_url, copies=(str(folder), 10**6))
    found.fetch_ahead(np.array([4, 5]))
    rows = [[position] for position in range(6)]
    for name, array in vars(wanted.read_rows(rows)).items():
        np.testing.assert_array_equal(getattr(found.read_rows(rows), name), array, err_msg=name)
    found.close()
    copies = {path.name for path in folder.iterdir() if len(path.name) == 64}
    shards = found.manifest.shards
    assert copies == {file.sha256 for shard in shards for file in (shard.index, *shard.files.values())}
