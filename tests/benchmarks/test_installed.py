import json

import pytest

from benchmarks.support.installed import Finished, run_installed


def test_json_is_found_after_lines_of_native_libraries() -> None:
    printed = "[Gloo] Rank 0 is connected\n" + json.dumps({"kl": 1.5, "nested": {"a": 1}}, indent=1) + "\n"
    assert Finished(printed, 1.0, 1).json == {"kl": 1.5, "nested": {"a": 1}}


def test_cost_is_measured() -> None:
    finished = run_installed("train-student", "--help")
    assert "Train a student" in finished.stdout
    assert 0 < finished.seconds < 60
    assert 2**20 < finished.peak_memory_bytes < 2**34


def test_a_failing_command_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="exit status 2"):
        run_installed("train-student", "no-such-command")
