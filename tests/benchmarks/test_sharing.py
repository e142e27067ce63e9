from pathlib import Path

import pytest

from benchmarks import sharing
from benchmarks.sharing import CHECKED, FSSPEC, OURS, S5CMD, rounds, rows_of, ways, write_cache
from support.s3_server import s3_server
from teacher_cache.shards.storage import Storage
from tools.checking.verify import verify


def test_ours_is_compared_with_each_of_the_others() -> None:
    seconds = {OURS: [1.0, 9.0, 2.0], FSSPEC: [1.0, 1.7, 1.7], S5CMD: [1.0, 1.1, 1.1], CHECKED: [2.2, 2.2, 9.0]}
    rows = {row.what: row for row in rows_of("push", seconds, n_bytes=44_000_000)}
    assert rows["push: s5cmd"].value == pytest.approx(40)
    ratios = {name: row for name, row in rows.items() if "÷" in name}
    assert [(row.value, row.holds) for row in ratios.values()] == [
        (pytest.approx(0.85), False), (pytest.approx(1.1), True), (pytest.approx(0.55), None),
    ]  # fmt: skip
    del seconds[S5CMD]
    rows = {row.what: row for row in rows_of("pull", seconds, n_bytes=44_000_000)}
    assert rows["pull: s5cmd"].value == "not on PATH"
    assert rows["pull ÷ fsspec"].value == pytest.approx(0.85)


def test_every_way_copies_the_same_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sharing, "FOLDER", tmp_path)
    manifest = write_cache(tmp_path / "source", 2, (1, 1))
    assert manifest.complete
    assert verify(str(tmp_path / "source"), quick=True).problems == []
    with s3_server() as server:
        pushes, pulls = ways(server)
        for up in (True, False):
            seconds = rounds(pushes, pulls, tmp_path / "source", server, 2, up)
            assert {OURS, FSSPEC} <= set(seconds)
            assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
        assert server.store.find("benchmark") == []
    assert len(Storage(str(tmp_path / "source")).names()) == 8
