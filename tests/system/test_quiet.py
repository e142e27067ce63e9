"""What commands print is ours: results on standard output, on standard error log lines of our own, each of one line.

Libraries say a lot while they load and save models; real processes are needed to hear all of it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import run_installed
from support.workspace import Workspace
from teacher_cache.logs import QUIET

OUR_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (teacher_cache|trainer|tools)\.[\w.]+: \S.*")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command with --json and returns what it said, if that is all there is."""
    for name in QUIET:  # commands that ran in this very process have set them
        monkeypatch.delenv(name, raising=False)

    def run(*line: object) -> Any:
        done = run_installed(*map(str, line), "--json")
        assert done.returncode == 0, done.stderr
        assert [part for part in done.stderr.splitlines() if not OUR_LINE.fullmatch(part)] == []
        return json.loads(done.stdout)

    return run


def test_caching_training_and_checking_print_nothing_of_others(workspace: Workspace, said: Callable[..., Any]) -> None:
    cache, output = workspace.folder / "cache", workspace.folder / "student"
    assert said("teacher-cache", "run", workspace.cache_config(cache))["complete"]
    config = workspace.train_config(cache, output, data={"cache": str(cache), "num_workers": 1})
    assert said("train-student", "run", config, "--set", "loop.max_steps=2")["steps"] == 2
    assert said("train-student", "evaluate", output / "final", cache, "--limit", 4)["samples"] == 4
    assert said("cache-tools", "verify", cache, "--teacher", workspace.teacher)["rescored"]["problems"] == []


def test_nor_does_caching_in_vllm(workspace: Workspace, said: Callable[..., Any]) -> None:
    pytest.importorskip("vllm")
    engine = {"kind": "vllm", "cpu_kv_cache_gib": 1, "max_batch_tokens": 256}
    config = workspace.cache_config(workspace.folder / "cache", engine=engine)
    assert said("teacher-cache", "run", config)["complete"]


def test_details_are_there_for_the_asking(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    config: Path = workspace.train_config(workspace.folder / "none", workspace.folder / "student")
    done = run_installed("train-student", "init", config, "--verbose", "--json")
    assert json.loads(done.stdout)["layers"] == 1
    assert "Loading weights" in done.stderr
