"""The guide shows what the commands print."""

import shlex

import pytest
from click.testing import CliRunner

from support.markdown_pages import ROOT, Block, blocks
from teacher_cache.teacher_cache_cli import main

SHOWN = [
    block for block in blocks(ROOT / "docs/fleet.md") if "teacher-cache sbatch" in block.text or "k8s" in block.text
]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.place)
def test_what_a_command_prints_is_as_shown(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = block.commands
    printed = CliRunner().invoke(main, shlex.split(line)[1:]).stdout
    _, _, shown = block.text.replace("\\\n", " ").partition("\n")
    parts = [part for part in shown.split("…\n") if part]
    assert len(parts) == 2
    assert all(part in printed for part in parts)


def test_both_commands_are_shown() -> None:
    assert len(SHOWN) == 2
