from pathlib import Path

import pytest

from benchmarks import merging
from benchmarks.merging import as_rows, compare_keys, key_of, measure, write_caches
from teacher_cache.shards import shard_table
from teacher_cache.shards.reader import CacheReader
from tools.checking.verify import verify


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merging")
    write_caches(folder, caches=3, shards=2, samples=5)
    return folder


def broken(url: str) -> list[str]:
    """Problems of files and samples, ignoring the values of simulated rows."""
    return [problem for problem in verify(url).problems if ": row " not in problem]


def test_simulated_caches_are_real_ones(caches: Path) -> None:
    for number in range(3):
        url = str(caches / "caches" / f"{number:06d}")
        assert broken(url) == []
        assert CacheReader(url).keys == [key_of(10 * number + i) for i in range(10)]


def test_what_is_measured(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 5)
    found = measure(caches)
    assert (found["shards"], found["has_shard_table"]) == (6, True)
    assert (found["new_tar_bytes"], found["differing"]) == (0, 0)
    assert 0 < found["written_bytes"] < found["tar_bytes"]
    rows = as_rows(found, compare_keys(1000))
    assert [row.holds for row in rows if row.bar] == [True] * 4
    missed = as_rows(
        found | {"new_tar_bytes": 1, "differing": 1, "seconds": 1e3}, {"keys": 1, "seconds": 1, "peak_mib": 1}
    )
    assert [row.holds for row in missed if row.bar] == [False, False, False, True]
    union = str(caches / "union")
    assert broken(union) == []
    assert CacheReader(union).keys == [key_of(i) for i in range(30)]


def test_keys_have_one_sum() -> None:
    assert len({sum(key_of(number).encode()) for number in (0, 7, 12_345, 10**16 - 1)}) == 1
    assert merging.key_of(12) != merging.key_of(21)
