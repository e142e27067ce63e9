"""``make gpu-check`` on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.__main__ import PARTS, Part, run_parts
from benchmarks.gpu_check.reporting import SKIPPED
from support.markdown_pages import ROOT

WITHOUT_VLLM = [name for name in PARTS if name != "vllm"]  # which takes a minute to load three engines


def test_it_ends_well_and_names_what_it_skipped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *WITHOUT_VLLM, "--output", str(tmp_path / "check.json")]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    skipped = [row["what"] for row in rows if row["value"] == SKIPPED]
    for wanted in ("GPU: torch sees none", "waits of the host", "GPU cache against CPU cache", "compiled", "FSDP"):
        assert any(what.startswith(wanted) for what in skipped), wanted
    barred = [row for row in rows if row["bar"]]
    assert len(barred) >= 8
    assert all(row["holds"] for row in barred)
    assert not any(row["value"] == "failed" for row in rows)


def test_a_part_that_takes_too_long_is_stopped_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu_check, "WORK", tmp_path)
    monkeypatch.setitem(PARTS, "kernels", Part("kernels", 1))
    (row,) = run_parts(["kernels"])[0]
    assert row.what == "kernels: was stopped after 1 s"
    assert row.holds is False


def test_a_part_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu_check, "WORK", tmp_path)
    monkeypatch.setitem(PARTS, "absent", Part("not_there", 60))
    (row,) = run_parts(["absent"])[0]
    assert row.what.startswith("absent: ")
    assert "no part named absent" in row.what
    assert row.holds is False


def test_parts_that_the_time_does_not_reach_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "WORK", tmp_path)
    monkeypatch.setattr(gpu_check, "MAX_SECONDS", 0)
    (row,) = run_parts(["kernels"])[0]
    assert (row.value, row.holds) == (SKIPPED, None)
