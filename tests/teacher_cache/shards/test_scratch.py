"""Only folders of killed processes are removed."""

import tempfile
from pathlib import Path

import pytest

from teacher_cache.shards.holder import this_process
from teacher_cache.shards.scratch import scratch_folder


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    me = this_process("", "")
    dead = (
        tmp_path / f"teacher-cache-{me.machine}-{me.pid}-{me.started - 1}-x"
    )  # the PID of an earlier process, reused since
    others = [tmp_path / name for name in ("teacher-cache-notes", f"teacher-cache-{'0' * 16}-1-1-x")]
    for folder in (dead, *others):
        folder.mkdir()
        (folder / "file").write_text("x")
    with scratch_folder() as one, scratch_folder() as other:
        assert not dead.exists()
        (other / "file").write_text("x")
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (one, other, *others)}
    assert sorted(tmp_path.iterdir()) == sorted(others)
