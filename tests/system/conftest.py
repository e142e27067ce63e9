"""System tests run the commands in processes of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import run_ok
from support.models import write_random_teacher, write_text_corpus
from support.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(
        folder=tmp_path,
        teacher=write_random_teacher(tmp_path / "teacher"),
        corpus=write_text_corpus(tmp_path / "corpus", documents=24),
    )


@pytest.fixture
def make_cache(workspace: Workspace) -> Callable[[], Path]:
    """Makes the workspace's cache with the installed command and returns its folder."""

    def make() -> Path:
        cache = workspace.folder / "cache"
        summary = json.loads(run_ok("teacher-cache", "run", workspace.cache_config(cache), "--json"))
        assert summary["complete"]
        return cache

    return make
