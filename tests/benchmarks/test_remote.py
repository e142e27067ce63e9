import fcntl
import time
from pathlib import Path

import pytest

from benchmarks.remote import share
from support.watch import Watch


def test_the_share_of_waiting_leaves_out_the_first_step() -> None:
    seconds = [(5.0, 6.0), (0.1, 1.0), (0.3, 3.0)]
    assert share([{"data_wait": wait, "step_seconds": step} for wait, step in seconds]) == pytest.approx(10)


def test_a_watch_sees_the_largest_size_and_nothing_under_the_lock(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        (tmp_path / "a").write_bytes(bytes(700))
        time.sleep(0.3)
        with open(tmp_path / "room.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (tmp_path / "b").write_bytes(bytes(700))
            time.sleep(0.1)
            (tmp_path / "a").unlink()
        time.sleep(0.1)
    assert watch.most_bytes == 700
    assert watch.looks > 3
